"""The engine's end of the stream: a weight-transfer backend of vLLM's.

vLLM imports this module in each worker (it is named by ``worker_extension_cls``), which registers
the backend under the name `BACKEND`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm import _custom_ops
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from megarlhf.models.spec import ModelSpec
from megarlhf.sync.adapters import EngineAdapters
from megarlhf.sync.engine_layout import engine_parameters, untouched_parameters
from megarlhf.sync.fingerprints import Fingerprints, compare, fingerprints_of
from megarlhf.sync.landing import Landing
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.transports import open_inlet

BACKEND = "megarlhf"
EXTENSION = "megarlhf.sync.receiver.WorkerExtension"
PLAIN_WEIGHTS = "MEGARLHF_PLAIN_WEIGHTS"  # set where linears shall not be packed, on a CPU


@dataclass
class InitInfo(WeightTransferInitInfo):
    """vLLM's ``init_info``: a `StreamInfo` as a dictionary."""

    stream: dict[str, Any]


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """vLLM's ``update_info``: nothing, the plan says it all."""


class Receiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Receives this rank's rectangles, bucket by bucket, into the live model."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Compute the plan, find every parameter and meet the trainer's ranks."""
        info = StreamInfo(**init_info.stream)
        spec = ModelSpec.read(info.model_path)
        rank = self.parallel_config.rank
        self._info, self._worker = info, (info.number, rank)
        self._plan = info.plan(spec)
        layout = engine_parameters(spec, info.engine_topology, rank)
        self._landing = Landing(self.model, layout, untouched_parameters(spec))
        self._inlet = open_inlet(info, self._plan, rank, self.device, self._landing)
        self._adapters = None
        if (adapters := info.adapter_spec(spec)) is not None:
            self._adapters = EngineAdapters(
                adapters, info.of_adapters(), rank, self.device, self._landing, layout
            )

    def start_weight_update(self) -> None:
        """Nothing: each module is finished as soon as it is whole."""

    @torch.no_grad()
    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Receive one whole update: the model or, once that has come, only its adapters."""
        if self._adapters is None or not self._adapters.has_base:
            self._receive_model()
        if self._adapters is not None:
            self._adapters.receive()

    def _receive_model(self) -> None:
        self._inlet.begin()
        for bucket in self._plan:
            values = self._inlet.receive(bucket, bucket.messages[self._worker])
            if self._adapters is not None:
                self._adapters.keep(values)
            self._landing.finish(values)
            self._inlet.done(bucket)

    def finish_weight_update(self) -> None:
        """Nothing: see `start_weight_update`."""

    @torch.no_grad()
    def fingerprints(self) -> Fingerprints:
        """Of what this worker computes with.

        Raises:
            UserError: A parameter is kept in two forms, which do not agree.
        """
        found: Fingerprints = {}
        for bucket in self._plan:
            moves = [m for part in bucket.messages[self._worker].values() for m in part]
            for name in bucket.names:
                mine = [move for move in moves if move.engine_parameter == name]
                for values in self._readings(name):
                    parts = (values[move.target.slices] for move in mine)
                    prints = fingerprints_of(mine, parts, self._info.wire_dtype)
                    if mine and (mine[0].engine_parameter, mine[0].target) in found:
                        before = {key: found[key] for key in prints}
                        compare(before, prints, f"the packed form in engine {self._worker[0]}")
                    found |= prints
        return found | (self._adapters.fingerprints() if self._adapters is not None else {})

    def _readings(self, name: str) -> Iterator[torch.Tensor]:
        """What was streamed: the engine computes with it or, of adapted weights, keeps it as base."""
        if self._adapters is not None and name in self._adapters.kept:
            yield self._adapters.kept[name]
        else:
            yield from self._landing.readings(name)

    def shutdown(self) -> None:
        """Drop the link."""
        self._inlet = self._adapters = None


class WorkerExtension:
    """Named in ``worker_extension_cls``: every worker imports this module and has these methods."""

    def stream_fingerprints(self) -> Fingerprints:
        """See `Receiver.fingerprints`."""
        return self.weight_transfer_engine.fingerprints()


WeightTransferEngineFactory.register_engine(BACKEND, Receiver)

if os.environ.get(PLAIN_WEIGHTS):
    # vllm 0.32.0 has no setting for it. Linears then keep the checkpoint's layout.
    _custom_ops._supports_onednn = False
