"""The adapters of all experts of a rank, in two grouped matrix products."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from megarlhf.models.lora.linear import LinearAdapter

ALIGNMENT = 16  # bytes to which torch's kernels want each row to begin


def grouped_adapters(
    adapters: "Sequence[LinearAdapter]", tokens: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor | None:
    """What adapters add to the outputs of their experts' linears; None where nothing.

    Args:
        adapters: One an expert, alike.
        tokens: [T, in], in the order of their experts.
        ends: Where each expert's tokens end, int32.

    Returns:
        [T, out].
    """
    pairs = [adapter.matrices() for adapter in adapters]
    if pairs[0] is None:
        return None
    down, up = (torch.stack(matrices) for matrices in zip(*pairs, strict=True))
    missing = -down.shape[1] % (ALIGNMENT // down.element_size())
    down, up = F.pad(down, (0, 0, 0, missing)), F.pad(up, (0, missing))  # zeros add nothing
    inner = grouped_product(adapters[0].dropped(tokens), down, ends)
    return adapters[0].scaling * grouped_product(inner, up, ends)


def grouped_product(
    tokens: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """[T, in] in the order of their experts times each one's own of [experts, out, in]: [T, out]."""
    if not len(tokens):  # no kernel is asked for nothing; the matrices get their gradient, zeros
        return tokens @ matrices.sum(0).t()
    return F.grouped_mm(tokens, matrices.transpose(1, 2), offs=ends)
