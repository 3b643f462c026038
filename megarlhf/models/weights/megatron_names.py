"""What Megatron's checkpoints call the parameters, and which box of them each Hugging Face tensor is.

In a checkpoint a parameter is one global tensor, whatever the layout: the one that a single tensor rank
would hold (the vocabulary padded), with the layers, and behind them the experts, stacked along axes in
front. Where layers differ in kind each has tensors of its own instead. So the map is the layout map at
one tensor rank, and a layout only says in which boxes the global tensor is stored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.family import Entry
from megarlhf.models.weights.layout import Parameter, parameters_of
from megarlhf.models.weights.operations import Operation, Piece, Rect, Shape, Stacked
from megarlhf.parallel.topology import Topology

# Megatron's linears save an empty object beside their weight and insist on finding it.
_HAS_EXTRA_STATE = re.compile(r"\.linear_\w+\.weight$")

# Where Megatron's layers are Transformer Engine's, a linear also holds the norm before it.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attention.q_layernorm.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attention.kv_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def unfused(key: str) -> str:
    """What a global tensor is called where norms are modules of their own."""
    for fused, name in _FUSED_NORMS.items():
        if key.endswith(f".{fused}"):
            return key.removesuffix(fused) + name
    return key


@dataclass(frozen=True)
class GlobalParameter:
    """One layer's (one expert's) part of a global tensor.

    Attributes:
        key: The global tensor's name.
        index: Position along the axes in front: (), (layer,), (expert,) or (layer, expert).
        axes: Their sizes.
        sources: Names of the Hugging Face tensors.
        shapes: Their shapes.
        operation: How they make up the parameter.
    """

    key: str
    index: tuple[int, ...]
    axes: tuple[int, ...]
    sources: tuple[str, ...]
    shapes: tuple[Shape, ...]
    operation: Operation

    @cached_property
    def pieces(self) -> list[Piece]:
        """Which box of which source is which box of the parameter, axes in front left out."""
        return self.operation.pieces(self.shapes, 0, 1)

    def global_shape(self, tp: int) -> Shape:
        """Of the global tensor as ``tp`` ranks save it, axes in front included."""
        shape = self.operation.local_shape(self.shapes, tp)
        cut = self.operation.partition_dim
        if cut is not None:
            shape = Rect.whole(shape).along(cut, 0, shape[cut] * tp).shape
        return (*self.axes, *shape)

    def boxes(self, tp_rank: int, tp: int) -> list[Rect]:
        """What of the global tensor tensor rank ``tp_rank`` stores, axes in front included."""
        front = tuple((i, i + 1) for i in self.index)
        return [Rect((*front, *box.ranges)) for box in self._cut(tp_rank, tp)]

    def _cut(self, tp_rank: int, tp: int) -> Iterator[Rect]:
        cut = self.operation.partition_dim
        whole = Rect.whole(self.operation.local_shape(self.shapes, tp))
        if cut is None:
            yield whole
        elif isinstance(self.operation, Stacked):  # Megatron saves gate and up apart
            offset = 0
            for shape in self.shapes:
                size = shape[0] // tp
                yield whole.along(0, offset + tp_rank * size, offset + (tp_rank + 1) * size)
                offset += shape[0]
        else:
            size = whole.shape[cut]
            yield whole.along(cut, tp_rank * size, (tp_rank + 1) * size)

    @property
    def extra_state(self) -> str | None:
        """Key of the empty object that a linear layer has beside its weight, if it is cut."""
        is_cut = self.operation.partition_dim is not None
        if not is_cut or not _HAS_EXTRA_STATE.search(self.key):
            return None
        module = self.key.removesuffix("weight") + "_extra_state"
        index, axes = self.index or (0,), self.axes or (1,)
        return f"{module}/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, axes))}"


def global_parameters(spec: ModelSpec, *, layers_apart: bool) -> list[GlobalParameter]:
    """Every parameter of a model, layer by layer and expert by expert.

    Args:
        spec: The model.
        layers_apart: Whether each layer has tensors of its own: see `has_layers_apart`.
    """
    found = []
    for entry in spec.entries:
        layers = range(spec.num_layers) if entry.per_layer else (0,)
        experts = range(spec.num_experts) if entry.per_expert else (0,)
        for layer in layers:
            if entry.per_layer and not spec.has(entry, layer):
                continue
            found += [_global(spec, entry, layer, expert, layers_apart) for expert in experts]
    return found


def has_layers_apart(spec: ModelSpec) -> bool:
    """Whether Megatron saves each layer by itself: where it is told which ones are mixtures."""
    return isinstance(spec.settings.get("moe_layer_freq", 1), list)


def _global(
    spec: ModelSpec, entry: Entry, layer: int, expert: int, layers_apart: bool
) -> GlobalParameter:
    key = entry.parameter
    index: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    if entry.per_layer and layers_apart:
        key = key.replace("{layer}", str(layer))
    elif entry.per_layer:
        key, index, axes = key.replace("layers.{layer}.", "layers."), (layer,), (spec.num_layers,)
    if entry.per_expert:
        key = key.replace("local_experts.{expert}.", "experts.")
        index, axes = (*index, expert), (*axes, spec.num_experts)
    return GlobalParameter(
        key,
        index,
        axes,
        tuple(t.name.format(layer=layer, expert=expert) for t in entry.tensors),
        tuple(t.resolve(spec.dims) for t in entry.tensors),
        entry.operation(spec.dims),
    )


def owners(spec: ModelSpec, topology: Topology) -> Iterator[tuple[int, Parameter]]:
    """Every distinct part of every parameter with the first rank that holds it."""
    seen = set()
    for rank in range(topology.world):
        tp_rank = topology.coordinates(rank).tp
        for parameter in parameters_of(spec, topology, rank):
            part = tp_rank if parameter.partition_dim is not None else 0
            if (parameter.sources, part) not in seen:
                seen.add((parameter.sources, part))
                yield rank, parameter
