"""Adapters added to a rank's model chunks, whose own parameters are frozen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from megarlhf.errors import UserError
from megarlhf.models.lora import base_print
from megarlhf.models.lora.adapter import SUFFIX, AdaptedLinear, AdapterSpec
from megarlhf.models.lora.quantized import pack_linears
from megarlhf.models.lora.values import set_values
from megarlhf.models.weights.layout import Parameter, parameters_of
from megarlhf.models.weights.operations import Stacked
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megarlhf.models.lora.linear import LinearAdapter, Switch


@dataclass(frozen=True)
class Adapters:
    """The adapters that a model is trained with.

    Attributes:
        spec: Which they are.
        seed: Of their first values and of dropout.
        start: Adapters to go on from (PEFT's format); None: new ones, which add nothing.
        base: The frozen linears' weights: ``full``, or ``nf4``.
        double_quant: Of the latter, quantize the scales too.
    """

    spec: AdapterSpec
    seed: int
    start: Path | None = None
    base: str = "full"
    double_quant: bool = False

    def experts(self, wanted: str) -> str:
        """How a rank's experts are computed: packed ones one by one, so that one is unpacked."""
        return wanted if self.base == "full" else "sequential"


def check_layout(adapters: AdapterSpec, topology: Topology) -> None:
    """Every model chunk has something to train.

    Raises:
        UserError: One has nothing.
    """
    for rank in range(0, topology.world, topology.world // topology.pp):  # the first of each stage
        chunks = {parameter.chunk for parameter in parameters_of(adapters, topology, rank)}
        if len(chunks) < topology.vpp:
            raise UserError(
                f"pipeline stage {topology.coordinates(rank).pp} has no "
                f"{' and no '.join(adapters.adapter.targets)}: nothing to train",
                where="lora.target_modules",
                fix="add a module that every layer has, or use fewer stages",
            )


def attach(
    adapters: Adapters,
    topology: Topology,
    groups: "ProcessGroupCollection",
    rank: int,
    chunks: Sequence[nn.Module],
) -> "Switch":
    """Freeze a loaded model and add adapters, with their first values.

    Args:
        adapters: Which.
        topology: The model's layout.
        groups: Its process groups.
        rank: This rank.
        chunks: This rank's model chunks.

    Returns:
        What turns them off: see `Switch`.

    Raises:
        UserError: The adapters to go on from do not fit.
    """
    from megarlhf.models.lora.linear import Switch

    switch, spec = Switch(), adapters.spec
    if adapters.start is not None:
        base_print.check(adapters.start, spec.base, rank, topology.world)
    _freeze(chunks, spec)
    held = {(p.chunk, p.name): p for p in parameters_of(spec, topology, rank)}
    linears = {
        linear.down.parameter.format(layer="#", expert="#"): linear for linear in spec.linears
    }
    for (chunk, name), down in held.items():
        linear = linears.get(_without_numbers(name))
        if linear is not None:  # else it is a B, or a head
            up = held[chunk, name.removesuffix("A") + "B"]
            _add(chunks[chunk], linear, down, up, spec, groups, switch)
    if adapters.base == "nf4":
        for chunk in chunks:
            pack_linears(spec.base, chunk, double=adapters.double_quant)
    live = [dict(chunk.named_parameters()) for chunk in chunks]
    set_values(spec, list(held.values()), live, seed=adapters.seed, start=adapters.start)
    if adapters.start is not None:
        for adapter in adapters_in(chunks):
            adapter.remember()
    if spec.adapter.dropout:
        place = topology.coordinates(rank)  # the ranks that cut one tensor draw the same
        torch.manual_seed(((adapters.seed * 64 + place.pp) * 64 + place.cp) * 65536 + place.dp)
    return switch


def adapters_in(chunks: Sequence[nn.Module]) -> "Iterator[LinearAdapter]":
    """Those of a rank's model chunks."""
    from megarlhf.models.lora.linear import LinearAdapter

    for chunk in chunks:
        yield from (module for module in chunk.modules() if isinstance(module, LinearAdapter))


def _freeze(chunks: Sequence[nn.Module], spec: AdapterSpec) -> None:
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            is_head = spec.scalar_head is not None and name == "output_layer.weight"
            parameter.requires_grad_(is_head)
        if chunk.pre_process:
            # Recomputed layers get gradients only for inputs that want one.
            chunk.embedding.register_forward_hook(_wanting_gradient)


def _wanting_gradient(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _without_numbers(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def _add(
    model: nn.Module,
    linear: AdaptedLinear,
    down: Parameter,
    up: Parameter,
    spec: AdapterSpec,
    groups: "ProcessGroupCollection",
    switch: "Switch",
) -> None:
    from megarlhf.models.lora.linear import LinearAdapter

    place = down.name.removesuffix(f"{SUFFIX}.A")
    module = model.get_submodule(place)
    operation = linear.entry.operation(spec.dims)
    added = LinearAdapter(
        module,
        linear.kind,
        (down.shape, up.shape),
        _row_sources(up),
        stacked=isinstance(operation, Stacked),
        adapter=spec.adapter,
        switch=switch,
        config=model.config,
        group=groups.tp,
    )
    parent, _, name = place.rpartition(".")
    model.get_submodule(parent).add_module(name + SUFFIX, added)
    module.register_forward_hook(
        lambda _, inputs, output: (added(inputs[0], output[0]), *output[1:])
    )


def _row_sources(up: Parameter) -> list[int]:
    found = [-1] * up.shape[0]
    for piece in up.pieces:
        start, stop = piece.local.ranges[0]
        found[start:stop] = [piece.source] * (stop - start)
    return found
