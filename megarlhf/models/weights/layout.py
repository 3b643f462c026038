"""Which rectangle of which Hugging Face tensor lies where: the layout map applied to a topology.

Pure functions on shapes: usable for a 671B model on a laptop.
"""

from dataclasses import dataclass

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.family import Entry
from megarlhf.models.weights.operations import Piece, Shape
from megarlhf.parallel.topology import Topology


@dataclass(frozen=True)
class Parameter:
    """One parameter of one model chunk on one rank.

    Attributes:
        chunk: Index of the model chunk on this rank (0 unless virtual pipeline).
        name: The name in that chunk, layers numbered locally.
        shape: The local shape.
        sources: Names of the Hugging Face tensors, in the operation's order.
        pieces: What of them lies where in this parameter.
        partition_dim: Dimension that tensor parallelism cuts; None where it is replicated.
        trained: Whether it gets a gradient.
    """

    chunk: int
    name: str
    shape: Shape
    sources: tuple[str, ...]
    pieces: tuple[Piece, ...]
    partition_dim: int | None
    trained: bool = True


def parameters_of(spec: ModelSpec, topology: Topology, rank: int) -> list[Parameter]:
    """Every parameter that ``rank`` holds, in the family's order.

    With tied embeddings the last stage of a pipeline holds its own copy of the word embeddings
    (as its output layer), and both are listed. Experts are cut over the same tensor-parallel ranks.
    """
    place = topology.coordinates(rank)
    chunks = topology.layers_of(spec.num_layers, place.pp)
    first = place.pp == 0
    last = place.pp == topology.pp - 1
    experts = spec.num_experts // topology.ep  # on each rank
    first_expert = topology.expert_rank(rank) * experts
    found: list[Parameter] = []

    def add(entry: Entry, chunk: int, name: str, layer: int = 0, expert: int = 0) -> None:
        operation = entry.operation(spec.dims)
        shapes = [tensor.resolve(spec.dims) for tensor in entry.tensors]
        found.append(
            Parameter(
                chunk=chunk,
                name=name,
                shape=operation.local_shape(shapes, topology.tp),
                sources=tuple(t.name.format(layer=layer, expert=expert) for t in entry.tensors),
                pieces=tuple(operation.pieces(shapes, place.tp, topology.tp)),
                partition_dim=operation.partition_dim,
                trained=entry.trained,
            )
        )

    def add_layer(entry: Entry, chunk: int, local: int, layer: int) -> None:
        if not entry.per_expert:
            add(entry, chunk, entry.parameter.format(layer=local), layer)
            return
        for index in range(experts):
            name = entry.parameter.format(layer=local, expert=index)
            add(entry, chunk, name, layer, first_expert + index)

    for entry in spec.entries:
        if entry.per_layer:
            for chunk, layers in enumerate(chunks):
                for local, layer in enumerate(layers):
                    if spec.has(entry, layer):
                        add_layer(entry, chunk, local, layer)
        elif entry.parameter.startswith("embedding."):
            if first:
                add(entry, 0, entry.parameter)
            if last and spec.tied and not (first and len(chunks) == 1):
                add(entry, len(chunks) - 1, "output_layer.weight")
        elif last:
            add(entry, len(chunks) - 1, entry.parameter)
    return found


@dataclass(frozen=True)
class Holding:
    """A rectangle of a Hugging Face tensor and a rank that can give it.

    Attributes:
        name: The Hugging Face tensor.
        rank: The holder.
        chunk: Model chunk on that rank.
        parameter: Megatron's name in that chunk.
        piece: Where in the tensor and where in the parameter.
    """

    name: str
    rank: int
    chunk: int
    parameter: str
    piece: Piece


def holdings(spec: ModelSpec, topology: Topology) -> dict[str, list[Holding]]:
    """For every Hugging Face tensor, rectangles that cover it exactly once, each with one holder.

    Where several ranks hold the same rectangle (replicated parameters, data-parallel replicas, tied
    copies), holders are chosen so that the elements given by each rank stay even.
    """
    candidates: dict[str, dict[object, list[Holding]]] = {name: {} for name in spec.tensors}
    for rank in range(topology.world):
        for parameter in parameters_of(spec, topology, rank):
            for piece in parameter.pieces:
                name = parameter.sources[piece.source]
                holding = Holding(name, rank, parameter.chunk, parameter.name, piece)
                candidates[name].setdefault(piece.hf, []).append(holding)
    given = [0] * topology.world
    chosen: dict[str, list[Holding]] = {}
    for name, rectangles in candidates.items():
        chosen[name] = []
        for rect, holders in sorted(rectangles.items(), key=lambda item: item[0]):
            best = min(holders, key=lambda holding: (given[holding.rank], holding.rank))
            given[best.rank] += rect.numel
            chosen[name].append(best)
    return chosen
