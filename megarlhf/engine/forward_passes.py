"""Forward passes: what a model says of given sequences: log-probabilities, values, scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from megarlhf.data import packing
from megarlhf.data.records import MicroBatch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.passes import Passes
from megarlhf.parallel import context
from megarlhf.parallel.topology import Coordinates

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection


class ForwardPasses:
    """For any model; every method is collective over its ranks.

    Attributes:
        wrapped: This rank's chunks of the model, wrapped for data parallelism where it is trained.
        passes: Runs them.
        place: This rank's place in the layout.
        groups: The layout's process groups.
    """

    wrapped: list[Any]
    passes: Passes
    place: Coordinates
    groups: "ProcessGroupCollection"

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

    def logprobs(
        self,
        sequences: Sequence[TokenSequence],
        *,
        temperature: float = 1.0,
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> dict[int, list[float]]:
        """Log-probability of every token of every sequence, given those before it.

        Args:
            sequences: The whole global batch, the same on every rank.
            temperature: The logits are divided by it.
            groups: See `Batch`; with those of the training step the packs are the same, and so is
                the rounding.

        Returns:
            For the sequences of this data-parallel rank, by index, a float a token (entry 0 is 0). Empty
            on ranks that are not the first tensor rank of the last pipeline stage.
        """
        longer, groups = self.passes.filled(sequences, groups)
        lengths = [len(sequence.token_ids) for sequence in longer]
        return {
            index: of_tokens
            for batch, values in self._forward(longer, temperature, groups)
            for index, of_tokens in packing.scatter(values, batch, lengths)
            if index < len(sequences)
        }

    def values(self, sequences: Sequence[TokenSequence]) -> dict[int, list[float]]:
        """A critic's value of the state in which each token was chosen: of all tokens before it.

        See `logprobs`, whose order and alignment it shares; the model has a scalar head.
        """
        return self.logprobs(sequences)

    def scores(self, sequences: Sequence[TokenSequence]) -> dict[int, float]:
        """A reward model's score of every sequence: its value at the last token.

        See `logprobs` for arguments and for which ranks know which; the model has a scalar head.
        """
        longer, _ = self.passes.filled(sequences)
        lengths = [len(sequence.token_ids) for sequence in longer]
        return {
            index: value
            for batch, values in self._forward(longer)
            for index, value in packing.last_values(values, batch, lengths)
            if index < len(sequences)
        }

    @torch.no_grad()
    def _forward(
        self,
        sequences: Sequence[TokenSequence],
        temperature: float = 1.0,
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> list[tuple[MicroBatch, torch.Tensor]]:
        """Whole micro-batches and, on the CPU, an output a token [T]; empty on ranks without any."""

        def collect(output: torch.Tensor, batch: MicroBatch, **_: Any) -> torch.Tensor:
            return self.passes.token_outputs(output, batch, temperature)[0]

        batches, outputs = self.run_forward(sequences, collect, groups)
        if not (self.passes.is_last_stage and self.place.tp == 0):
            return []
        return [
            (batch, context.gather_tokens(values, batch.lengths, self.groups.cp).cpu())
            for batch, values in zip(batches, outputs, strict=True)
        ]
