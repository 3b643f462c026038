"""Scales of 4-bit blocks in 8 bits: double quantization (QLoRA, arXiv:2305.14314, section 3).

As bitsandbytes does it, less their mean and with its table of 8-bit floats, but not in the same groups.
There it is 256 scales in the tensor's order, and one mean for all of it: what a rank holds would depend
on how the tensor is cut. Here it is those of 32 rows in one column of blocks, which have a mean of their
own. That is 8 + 2 * 32 / 32 bits for 64 elements, 0.16 each in place of 0.5.
"""

import torch

ROWS = 32  # whose scales, of one column of blocks, are a group


def _table() -> torch.Tensor:
    """256 numbers from -1 to 1: 7 decades, each with twice the values of the one below it.

    Dettmers et al. 2022, arXiv:2110.02861, section 2.1 ("dynamic tree quantization").
    """
    sides = [
        10.0 ** (decade - 6) * (0.1 + 0.9 * (step + 0.5) / 2**decade)
        for decade in range(7)
        for step in range(2**decade)
    ]
    return torch.tensor(sorted([*sides, *(-value for value in sides), 0.0, 1.0]))


TABLE = _table()


def pack(largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize scales.

    Args:
        largest: fp32 [out, n]; ROWS divides out.

    Returns:
        uint8 [out, n]; and of every group, fp32 [out / ROWS, n]: the mean, and the largest distance
        from it.
    """
    groups = largest.unflatten(0, (-1, ROWS))
    means = groups.double().mean(1).float()  # the same in whatever order they are summed
    rest = groups - means.unsqueeze(1)
    spreads = rest.abs().amax(1)
    scaled = rest / spreads.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    table = TABLE.to(largest.device)
    numbers = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2)
    return numbers.to(torch.uint8).flatten(0, 1), means, spreads


def unpack(numbers: torch.Tensor, means: torch.Tensor, spreads: torch.Tensor) -> torch.Tensor:
    """The scales that `pack` packed, fp32 [out, n]."""
    rest = TABLE.to(numbers.device)[numbers.int()].unflatten(0, (-1, ROWS))
    return (rest * spreads.unsqueeze(1) + means.unsqueeze(1)).flatten(0, 1)
