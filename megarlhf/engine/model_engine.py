"""One model on its ranks: loads, runs forward, takes optimizer steps."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from megarlhf.config.schema import ModelConfig, OptimizerConfig
from megarlhf.data.records import Batch, MicroBatch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine import data_parallel
from megarlhf.engine.finite_step import step_if_finite
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.offload import Offloaded
from megarlhf.engine.optimizer import make_optimizer, state_tensors
from megarlhf.engine.passes import Passes
from megarlhf.engine.scoring import Scoring
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


class ModelEngine(Scoring):
    """A model laid out over ranks; every method is collective over them.

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
        self._unsettled = False
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

    # -- passes -----------------------------------------------------------------------------------

    def run_forward(
        self,
        sequences: Sequence[TokenSequence],
        consume: Any,
        groups: Sequence[tuple[int, ...]] | None = None,
        *,
        trained_only: bool = False,
    ) -> tuple[list[MicroBatch], list[Any]]:
        """Run the model, without dropout, on its share of a number of sequences of any size.

        Args:
            sequences: The whole global batch, the same on every rank.
            consume: Called on the last stage with a micro-batch's output and this rank's part of
                it. Behind the given sequences there may be copies: see `filled`.
            groups: See `Batch`.
            trained_only: See `Passes.run`.

        Returns:
            This data-parallel rank's whole micro-batches, and what ``consume`` returned.
        """
        batches = self.passes.micro_batches(*self.passes.filled(sequences, groups))
        for chunk in self.wrapped:
            chunk.eval()
        outputs = self.passes.run(batches, consume, forward_only=True, trained_only=trained_only)
        return batches, outputs

    def train_step(
        self,
        sequences: Sequence[TokenSequence],
        loss: TokenLoss,
        *,
        lr: float,
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on a global batch.

        Args:
            sequences: The whole global batch, the same on every rank.
            loss: Returns sums, which are divided here by its ``divisors`` of the whole batch.
            lr: Learning rate of this step.
            groups: Positions of sequences that have to be in one micro-batch; see `Batch`.

        Returns:
            The loss's metrics (means over the global batch), ``loss``, ``grad_norm``, ``lr`` and
            ``skipped_steps``, 1 where loss or gradient is not finite: then nothing has changed. The
            same on every rank.
        """
        batches = self.passes.micro_batches(sequences, groups)
        divisors = loss.divisors(sequences)
        # Megatron divides, in the one place where it scales a loss's gradient, so that a mixture's
        # auxiliary losses, which it sums over all tokens, are divided with it.
        everything = sum(len(sequence.token_ids) for sequence in sequences)
        self.config.grad_scale_func = lambda total: total / everything

        def compute(
            output: torch.Tensor, batch: MicroBatch
        ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            total, metrics = self._loss_of(output, batch, loss)
            sums = {**metrics, "loss": total}
            metrics = {n: value.detach() / (divisors.of(n) or 1) for n, value in sums.items()}
            return total * (everything / divisors.loss), torch.ones((), dtype=torch.int), metrics

        for chunk in self.wrapped:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        outputs = self.passes.run(
            batches, compute, forward_only=False, trained_only=loss.reads_trained_only
        )
        metrics = self.passes.sum_metrics(("loss", *loss.metric_names), outputs)
        grad_norm, taken = self._step(metrics["loss"])
        self._unsettled |= taken
        return {**metrics, "grad_norm": grad_norm, "lr": lr, "skipped_steps": float(not taken)}

    def _step(self, loss: float) -> tuple[float, bool]:
        """The gradient's norm, and whether a step was taken."""
        return step_if_finite(self.optimizer, loss, self.device)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Batch, TokenLoss]]) -> dict[str, float]:
        """A loss and its metrics over several batches of any size, without a step.

        Args:
            batches: Whole global batches, the same on every rank, each with its loss, all of one
                kind. At least one; they may be made while this runs.

        Returns:
            The metrics and ``loss``: means over all batches together, the same on every rank.
        """
        sums, counts = Counter(), Counter()
        for batch, loss in batches:
            divisors = loss.divisors(batch.sequences)
            for name, total in self._summed(batch, loss).items():
                sums[name] += total
                counts[name] += divisors.of(name)
        return {name: total / (counts[name] or 1) for name, total in sums.items()}

    def _summed(self, batch: Batch, loss: TokenLoss) -> dict[str, float]:
        """A loss and its metrics, summed over a global batch."""

        def measure(output: torch.Tensor, part: MicroBatch, **_: Any) -> dict[str, torch.Tensor]:
            total, metrics = self._loss_of(output, part, loss)
            return {**metrics, "loss": total}

        only = loss.reads_trained_only
        _, outputs = self.run_forward(batch.sequences, measure, batch.groups, trained_only=only)
        return self.passes.sum_metrics(("loss", *loss.metric_names), outputs)

    def _loss_of(
        self, output: torch.Tensor, batch: MicroBatch, loss: TokenLoss
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        values, extra = self.passes.token_outputs(
            output,
            batch,
            loss.temperature_at(batch),
            with_entropy=loss.needs_entropy,
            trained_only=loss.reads_trained_only,
        )
        if loss.from_logits is not None:
            extra = loss.from_logits(output.view(-1, output.shape[-1]), batch, self.groups.tp)
        return loss(values, extra, batch)
