"""Pairs in a packed micro-batch: of a global batch's sequences, 2 i is preferred to 2 i + 1."""

from collections.abc import Callable

import torch

from megarlhf.data.records import MicroBatch

# From values [T] and the micro-batch to each sequence's sum [n]; `parallel.context.sequence_sums`.
SequenceSums = Callable[[torch.Tensor, MicroBatch], torch.Tensor]


def chosen_and_rejected(
    values: torch.Tensor, batch: MicroBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of sequences [n], in the order of ``batch.order``, as those of pairs [n / 2] each.

    Whoever cut the batch kept pairs together: see `Batch.groups`.
    """
    by_index = sorted(range(len(batch.order)), key=batch.order.__getitem__)
    ordered = values[by_index]
    return ordered[0::2], ordered[1::2]
