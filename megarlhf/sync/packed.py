"""Weights in a kernel's own layout: how they get into it, and what they are, read back out of it.

Written for vllm 0.32.0.
"""

from collections.abc import Mapping

import torch
from torch import nn

from megarlhf.errors import UserError

BLOCK = 1024  # columns of a linear that are read at a time


def is_mixture(module: nn.Module) -> bool:
    """Whether a module holds all experts of a layer."""
    return hasattr(getattr(module, "quant_method", None), "moe_kernel")


def pack_mixture(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Let the experts' method pack fresh weights.

    On a GPU the packed ones go into the memory that CUDA graphs know. On a CPU vLLM would, for the
    second time, forget to pack: it takes what has a kernel as packed (vllm 0.32.0,
    ``UnquantizedFusedMoEMethod._setup_kernel``), so the kernel is taken away first.

    Args:
        module: The experts.
        values: Parameter to its values in the checkpoint's layout.
    """
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value, requires_grad=False))
    on_cpu = next(iter(values.values())).device.type == "cpu"
    if on_cpu:
        module.quant_method.moe_kernel = None
    module.quant_method.process_weights_after_loading(module)
    for name, value in values.items():
        packed = getattr(module, name)
        if not on_cpu:
            before[name].data.copy_(packed)
            setattr(module, name, before[name])
        elif packed.data_ptr() == value.data_ptr():  # a kernel that packs nothing keeps what it got
            packed.data = packed.data.clone()


def unpacked_linear(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The matrix [out, in] that a CPU linear multiplies with: its answers to the unit vectors.

    One product by 1 and sums with zeros: exact in every dtype.
    """
    outputs, inputs = shape
    matrix = torch.empty(outputs, inputs, dtype=dtype)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        units = torch.zeros(stop - start, inputs, dtype=dtype)
        units[torch.arange(stop - start), torch.arange(start, stop)] = 1
        matrix[:, start:stop] = module.cpu_linear(units, module.weight, None).t()
    return matrix


def unpacked_mixture(
    module: nn.Module, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> torch.Tensor:
    """A parameter of the experts in the checkpoint's layout.

    Args:
        module: The experts.
        name: Of the parameter.
        shapes: Of every parameter of the module before it was packed.

    Raises:
        UserError: The kernel is one whose layout is not known.
    """
    live = getattr(module, name).data
    if live.device.type == "cpu":
        return _sorted_back(module, name, shapes)
    backend = module.quant_method.unquantized_backend.name
    if backend == "TRITON" and tuple(live.shape) == shapes[name]:
        return live
    raise UserError(
        f"how {backend} keeps experts is not known here: they cannot be verified",
        where="stream.verify",
        fix="set stream.verify=never",
    )


def _sorted_back(
    module: nn.Module, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> torch.Tensor:
    """A CPU's kernel pads and reorders the elements of an expert.

    Where each went is found by packing the elements' own numbers, a digit at a time: 0 to 255 is exact
    in every dtype.
    """
    live = getattr(module, name).data
    experts, *shape = shapes[name]
    size = torch.Size(shape).numel()
    numbers = torch.arange(1, size + 1).view(1, *shape)  # 0 is padding
    found = torch.zeros(live[0].numel(), dtype=torch.int64)
    for shift in range(0, size.bit_length(), 8):
        one = {
            other: torch.zeros(1, *whole[1:], dtype=live.dtype) for other, whole in shapes.items()
        }
        one[name] = (numbers >> shift & 255).to(live.dtype)
        found += _packed(module, one)[name].flatten().to(torch.int64) << shift
    places = found.nonzero()[:, 0]
    values = torch.empty(experts, size, dtype=live.dtype)
    values[:, found[places] - 1] = live.reshape(experts, -1)[:, places]
    return values.view(experts, *shape)


def _packed(module: nn.Module, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the module's kernel makes of other weights than its own."""
    stand_in = nn.Module()
    for name, value in values.items():
        stand_in.register_parameter(name, nn.Parameter(value, requires_grad=False))
    module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(stand_in)
    return {name: getattr(stand_in, name).data for name in values}
