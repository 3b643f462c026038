"""Optimizer steps and evaluations: a loss over global batches, whatever their layout."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from megarlhf.data.records import Batch, MicroBatch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.finite_step import step_if_finite
from megarlhf.engine.forward_passes import ForwardPasses
from megarlhf.engine.loss import TokenLoss

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


class TrainingSteps(ForwardPasses):
    """For a model with an optimizer; every method is collective over its ranks.

    Attributes:
        config: Megatron's configuration of the model, whose hooks the schedule reads.
        optimizer: Megatron's; None for a model that is only run forward.
        device: Where the ranks compute and communicate.
    """

    config: "TransformerConfig"
    optimizer: Any
    device: torch.device
    _unsettled: bool = False  # a step's parameters are not gathered yet: see `ModelEngine.settle`

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
