"""4-bit NormalFloat (QLoRA, arXiv:2305.14314, section 3): 16 values, scaled by each block's largest.

As bitsandbytes packs it, with its table, so that each can read the other's. A block is 64 elements of a
row; a row is a multiple of it, so what is cut between ranks is quantized as the whole would be. On a GPU
bitsandbytes' kernel unpacks, where it is installed: the same numbers, faster.
"""

import importlib.util
from functools import cache
from types import ModuleType

import torch

BLOCK = 64  # elements that share a scale
# Quantiles of the standard normal distribution, one of them exactly 0 (appendix E).
CODE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack a matrix.

    Args:
        weight: [out, in]; BLOCK divides in.

    Returns:
        uint8 [out, in / 2], two numbers in a byte, the first in its upper half; and fp32
        [out, in / BLOCK], the largest magnitude of each block.
    """
    blocks = weight.detach().float().unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(-1)
    scaled = blocks / largest.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
    code = torch.tensor(CODE, device=weight.device)
    numbers = torch.bucketize(scaled, (code[1:] + code[:-1]) / 2).to(torch.uint8).flatten(1)
    return numbers[:, ::2] << 4 | numbers[:, 1::2], largest


def dequantize(packed: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [out, in] that `quantize` packed, rounded to 16 values a block."""
    kernels = bitsandbytes()
    if packed.is_cuda and kernels is not None:
        matrix = torch.empty(len(packed), 2 * packed.shape[1], dtype=dtype, device=packed.device)
        return kernels.dequantize_4bit(
            packed.view(-1, 1),
            absmax=largest.flatten(),
            out=matrix,
            blocksize=BLOCK,
            quant_type="nf4",
        )
    return in_plain_torch(packed, largest, dtype)


def in_plain_torch(packed: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`dequantize` on any device."""
    code = torch.tensor(CODE, device=packed.device)
    numbers = torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1).int()
    blocks = code[numbers].unflatten(1, (-1, BLOCK))
    return (blocks * largest.unsqueeze(-1)).flatten(1).to(dtype)


@cache
def bitsandbytes() -> ModuleType | None:
    """Its functions; None where it is not installed (an extra: ``megarlhf[qlora]``)."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    import bitsandbytes.functional

    return bitsandbytes.functional
