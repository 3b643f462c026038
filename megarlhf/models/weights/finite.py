"""Whether numbers are all finite, told from their bits: many times faster than asking for each."""

import numpy as np
import torch

# A number is infinite or not a number where all bits of its exponent are set.
_EXPONENTS = {
    torch.float64: (np.uint64, 0x7FF0_0000_0000_0000),
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
}
_BLOCK = 2**17  # elements looked at together: what is made of them fits a core's cache


def bytes_are_finite(data: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether the numbers in contiguous bytes, uint8, are all finite."""
    unsigned, exponent = _EXPONENTS[dtype]
    bits = data.reshape(-1).view(unsigned)
    parts = (bits[start : start + _BLOCK] for start in range(0, bits.size, _BLOCK))
    return all(int((part & unsigned(exponent)).max()) != exponent for part in parts)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers are all finite."""
    flat = tensor.detach().reshape(-1)
    if flat.device.type != "cpu":
        return bool(flat.isfinite().all())
    return all(
        bytes_are_finite(part.view(torch.uint8).numpy(), tensor.dtype)
        for part in flat.split(_BLOCK)
    )
