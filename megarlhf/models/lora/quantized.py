"""Frozen linears whose weights are held in 4 bits, and in full only while they are multiplied with."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from megarlhf.errors import UserError
from megarlhf.models.lora import nf4, scales
from megarlhf.models.lora.adapter import is_linear
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology


class PackedWeight(nn.Module):
    """A weight in 4 bits.

    Args:
        weight: [out, in].
        double: Quantize its blocks' scales too.
    """

    def __init__(self, weight: torch.Tensor, *, double: bool) -> None:
        super().__init__()
        packed, largest = nf4.quantize(weight)
        self.register_buffer("packed", packed, persistent=False)
        parts = scales.pack(largest) if double else (largest,)
        for name, part in zip(("scales", "means", "spreads"), parts, strict=False):
            self.register_buffer(name, part, persistent=False)
        self._double, self._dtype = double, weight.dtype

    def detach(self) -> torch.Tensor:
        """Its values, in fresh memory: called as a parameter's is."""
        largest = self.scales
        if self._double:
            largest = scales.unpack(largest, self.means, self.spreads)
        return nf4.dequantize(self.packed, largest, self._dtype)


def check_quantizable(spec: ModelSpec, topology: Topology, *, double: bool) -> None:
    """Every linear's rows are whole blocks on every rank, and their scales whole groups.

    Raises:
        UserError: Some are not.
    """
    names = _linear_names(spec)
    stages = {topology.coordinates(rank).pp: rank for rank in range(topology.world)}
    for parameter in (p for rank in stages.values() for p in parameters_of(spec, topology, rank)):
        if parameter.name.removesuffix(".weight").rpartition(".")[2] not in names:
            continue
        if parameter.shape[-1] % nf4.BLOCK:
            raise UserError(
                f"{parameter.sources[0]} has rows of {parameter.shape[-1]} elements on a rank: nf4 "
                f"quantizes {nf4.BLOCK} at a time",
                where="lora.base",
                fix="use lora.base=full, or a smaller model.parallel.tensor",
            )
        bounds = [bound for piece in parameter.pieces for bound in piece.local.ranges[0]]
        if double and any(bound % scales.ROWS for bound in bounds):
            raise UserError(
                f"{' and '.join(parameter.sources)} do not meet on a rank at multiples of "
                f"{scales.ROWS} rows, whose scales are quantized together",
                where="lora.double_quant",
                fix="leave it out",
            )


def pack_linears(spec: ModelSpec, chunk: nn.Module, *, double: bool) -> None:
    """Hold the weights of a chunk's linears in 4 bits, whether they have adapters or not."""
    names = _linear_names(spec)
    for name, module in list(chunk.named_modules()):
        if name.rpartition(".")[2] in names and isinstance(
            module._parameters.get("weight"), nn.Parameter
        ):
            _pack(module, double=double)


class WithPacked:
    """A model chunk whose parameters include packed ones.

    Args:
        chunk: The model chunk.
    """

    def __init__(self, chunk: nn.Module) -> None:
        self._chunk = chunk

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter | PackedWeight]]:
        """By the names they would have; `detach` gives the values of each."""
        yield from self._chunk.named_parameters()
        for name, module in self._chunk.named_modules():
            if isinstance(module, PackedWeight):
                yield name.removesuffix("packed_weight") + "weight", module


def _linear_names(spec: ModelSpec) -> set[str]:
    """Megatron's, such as ``linear_qkv``."""
    modules = (entry.parameter.rpartition(".")[0] for entry in spec.entries if is_linear(entry))
    return {module.rpartition(".")[2] for module in modules}


def _pack(linear: nn.Module, *, double: bool) -> None:
    packed = PackedWeight(linear.weight, double=double)
    del linear.weight
    linear.packed_weight = packed
    inner = linear.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        weight = packed.detach()
        storage = weight.untyped_storage()._cdata

        def pack(saved: torch.Tensor) -> Any:
            # What the backward pass keeps of the weight is how to make it again.
            if saved.untyped_storage()._cdata != storage:
                return saved
            return saved.shape, saved.stride(), saved.storage_offset()

        def unpack(kept: Any) -> torch.Tensor:
            return kept if torch.is_tensor(kept) else packed.detach().as_strided(*kept)

        linear.weight = weight
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                return inner(*args, **kwargs)
        finally:
            del linear.weight

    linear.forward = forward
