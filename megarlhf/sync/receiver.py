"""The engine's end of the stream: a weight-transfer backend of vLLM's.

vLLM imports this module in each worker (it is named by ``worker_extension_cls``), which registers
the backend under the name `BACKEND`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from megarlhf.models.spec import ModelSpec
from megarlhf.sync.link import Link, StreamInfo
from megarlhf.sync.plan import Bucket, plan_stream

BACKEND = "megarlhf"
EXTENSION = "megarlhf.sync.receiver.WorkerExtension"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """vLLM's ``init_info``: a `StreamInfo` as a dictionary."""

    stream: dict[str, Any]


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """vLLM's ``update_info``: nothing, the plan says it all."""


class Receiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Receives each bucket's rectangles into whole Hugging Face tensors and loads those."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Compute the plan and meet the trainer's ranks."""
        self._info = StreamInfo(**init_info.stream)
        self._plan = plan_stream(
            ModelSpec.read(self._info.model_path), self._info.trainer, self._info.bucket_elements
        )
        worker = self.parallel_config.rank
        self._link = Link(self._info, self._info.trainer.world + worker, self.device)

    def start_weight_update(self) -> None:
        """Let vLLM put each layer together again from checkpoint-form tensors."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Receive one whole update."""
        self.model.load_weights(self._tensors())

    def finish_weight_update(self) -> None:
        """Finish the layers."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Drop the link."""
        self._link = None

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for bucket in self._plan:
            yield from self._receive(bucket).items()

    def _receive(self, bucket: Bucket) -> dict[str, torch.Tensor]:
        dtype = self._info.wire_dtype
        messages = {
            rank: torch.empty(bucket.elements_from(rank), dtype=dtype, device=self.device)
            for rank in bucket.parts
        }
        works = [self._link.receive(message, rank) for rank, message in messages.items()]
        # Fresh memory for every bucket: layerwise reload keeps references until a layer is whole.
        tensors = {
            name: torch.empty(shape, dtype=dtype, device=self.device)
            for name, shape in bucket.tensors
        }
        for work, (rank, message) in zip(works, messages.items(), strict=True):
            work.wait()
            begin = 0
            for part in bucket.parts[rank]:
                rect = part.piece.hf
                values = message[begin : begin + rect.numel].view(rect.shape)
                tensors[part.name][rect.slices].copy_(values)
                begin += rect.numel
        return tensors


class WorkerExtension:
    """Named in ``worker_extension_cls`` so that every worker imports this module."""


WeightTransferEngineFactory.register_engine(BACKEND, Receiver)
