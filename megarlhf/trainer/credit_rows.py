"""The rows that credit is assigned in: one per sample, with its sequences end to end."""

from collections.abc import Sequence

import torch

from megarlhf.data.records import Sample
from megarlhf.data.records import Sequence as TokenSequence


class Rows:
    """One row for each sample.

    Args:
        groups: For each prompt its samples.
        sequences: Their sequences, as `experience.as_sequences` made them.

    Attributes:
        samples: The sequences of each sample.
        mask: float64 [B, L], 1 where the policy chose the token.
    """

    def __init__(
        self, groups: Sequence[Sequence[Sample]], sequences: Sequence[TokenSequence]
    ) -> None:
        left = iter(sequences)
        self.samples = [[next(left) for _ in sample.parts] for group in groups for sample in group]
        self._rest = list(left)  # added, not trained on
        self.mask = self._padded([[one.loss_mask for one in row] for row in self.samples])

    def field(self, name: str) -> torch.Tensor:
        """A field of the sequences, float64 [B, L], 0 beyond each row's end."""
        return self._padded([[one.fields[name] for one in row] for row in self.samples])

    def set_field(self, name: str, values: torch.Tensor) -> None:
        """Give the sequences their parts of values [B, L]."""
        for row, numbers in zip(self.samples, values.tolist(), strict=True):
            begin = 0
            for one in row:
                one.fields[name] = numbers[begin : begin + len(one.token_ids)]
                begin += len(one.token_ids)
        for one in self._rest:
            one.fields[name] = [0.0] * len(one.token_ids)

    def set_weights(self, weights: Sequence[float]) -> None:
        """Give the trained tokens of each sample its ``loss_weight``, the others 0."""
        self.set_field(
            "loss_weight", self.mask * torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
        )

    @staticmethod
    def _padded(rows: Sequence[Sequence[list[float]]]) -> torch.Tensor:
        whole = [[value for part in row for value in part] for row in rows]
        tensors = [torch.tensor(row, dtype=torch.float64) for row in whole]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
