"""One model on its ranks: what it is built of, and its memory."""

from typing import TYPE_CHECKING, Any, Literal

import torch

from megarlhf.config.schema import ModelConfig, OptimizerConfig
from megarlhf.engine import data_parallel
from megarlhf.engine.offload import Offloaded
from megarlhf.engine.optimizer import make_optimizer, state_tensors
from megarlhf.engine.passes import Passes
from megarlhf.engine.training_steps import TrainingSteps
from megarlhf.models.build import build_chunks, transformer_config
from megarlhf.models.lora.attach import Adapters, attach
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.loading import load_pretrained
from megarlhf.parallel import device
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.process_groups_config import ProcessGroupCollection

Part = Literal["weights", "gradients", "optimizer"]


class ModelEngine(TrainingSteps):
    """A model laid out over ranks; every method is collective over them.

    What it computes is in its bases: `ForwardPasses` and `TrainingSteps`.

    Args:
        spec: The model; its weights are loaded from ``spec.path``.
        config: dtype and recompute.
        topology: The layout.
        groups: Its process groups.
        rank: This rank.
        micro_batch_tokens: Most tokens a packed forward pass holds.
        optimizer: Given for a model that is trained; without it there are no gradient buffers.
        adapters: Given where only these are trained.
        share: Whether beginnings that sequences have in common, such as prompts, are run once.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelConfig,
        topology: Topology,
        groups: "ProcessGroupCollection",
        rank: int,
        *,
        micro_batch_tokens: int,
        optimizer: OptimizerConfig | None = None,
        adapters: Adapters | None = None,
        share: bool = False,
    ) -> None:
        self.spec, self.topology, self.groups, self.rank = spec, topology, groups, rank
        self.device = device.prepare()
        self.place = topology.coordinates(rank)
        self.config = transformer_config(
            spec,
            topology,
            dtype=config.dtype,
            recompute=config.recompute,
            aux_loss_coef=config.aux_loss_coef,
            z_loss_coef=config.z_loss_coef,
            experts=config.experts if adapters is None else adapters.experts(config.experts),
        )
        self._chunks = build_chunks(spec, self.config, topology, groups, rank)
        load_pretrained(spec, topology, rank, self._chunks)
        self.adapters, self.switch = adapters, None
        if adapters is not None:
            self.switch = attach(adapters, topology, groups, rank, self._chunks)
        self.wrapped: list[Any] = list(self._chunks)
        self.optimizer: Any = None
        self._offloaded: dict[str, Offloaded] = {}
        if optimizer is not None:
            overlap = config.parallel.overlap
            self.wrapped = data_parallel.wrap(self._chunks, self.config, groups, overlap=overlap)
            self.optimizer = self._make_optimizer(optimizer)
        self.passes = Passes(
            spec,
            self.wrapped,
            topology,
            groups,
            rank,
            self.device,
            micro_batch_tokens,
            share=share,
        )

    def _make_optimizer(self, settings: OptimizerConfig) -> Any:
        return make_optimizer(settings, self.config, self.wrapped, self.groups)

    @property
    def chunks(self) -> "list[GPTModel]":
        """This rank's model chunks, their parameters up to date: see `settle`."""
        self.settle()
        return self._chunks

    def settle(self) -> None:
        """Finish what an overlapped optimizer step left for the next forward pass.

        For whoever reads parameters outside a pass; collective over the replicas.
        """
        if self._unsettled:
            data_parallel.gather_parameters(self.wrapped)
            self._unsettled = False

    # -- memory -----------------------------------------------------------------------------------

    def offload(self, *parts: Part) -> int:
        """Give back the device memory of ``weights``, ``gradients`` or ``optimizer`` state.

        Until `reload` nothing may be computed that needs them; a forward pass needs the weights only.
        Returns the bytes given back.
        """
        self.settle()
        for part in parts:
            if part not in self._offloaded:
                tensors = self._tensors_of(part)
                self._offloaded[part] = Offloaded(tensors, keep=part != "gradients")
        return sum(self._offloaded[part].nbytes for part in parts)

    def reload(self, *parts: Part) -> None:
        """Undo `offload` of these parts, of all where none is named: the same bits, gradients zero."""
        for part in parts or tuple(self._offloaded):
            if part in self._offloaded:
                self._offloaded.pop(part).restore()

    def _tensors_of(self, part: Part) -> list[torch.Tensor]:
        if part == "weights":
            held = ((*chunk.parameters(), *chunk.buffers()) for chunk in self._chunks)
            return [tensor.data for tensors in held for tensor in tensors]
        if self.optimizer is None:
            return []
        if part == "gradients":
            return [
                buffer.grad_data
                for model in self.wrapped
                for buffer in (*model.buffers, *model.expert_parallel_buffers)
            ]
        return state_tensors(self.optimizer)
