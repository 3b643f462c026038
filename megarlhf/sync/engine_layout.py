"""Which rectangle of which Hugging Face tensor each rank of an engine keeps, in which parameter.

Derived from the family's entries, as the trainer's layout is: a new family needs nothing here as long
as vLLM cuts its tensors as `engine_operations` says. Pure functions on shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.family import Entry
from megarlhf.models.weights.operations import Operation, Rect, Shape
from megarlhf.sync.engine_operations import COUNTERPARTS, EXPERTS, FUSED


@dataclass(frozen=True)
class EngineTopology:
    """Sizes of an engine.

    Attributes:
        tp: Its ranks, over which every layer is cut.
        expert_parallel: Whether whole experts are dealt to the ranks, instead of cutting each.
        engines: How many such engines there are.
    """

    tp: int = 1
    expert_parallel: bool = False
    engines: int = 1


@dataclass(frozen=True)
class EnginePiece:
    """``parameter[local] == tensor[hf]``; ``local`` may have an expert's dimension more."""

    tensor: str
    hf: Rect
    local: Rect


@dataclass(frozen=True)
class EngineParameter:
    """One parameter of one rank of an engine, as vLLM makes it before it packs it.

    Attributes:
        name: vLLM's name.
        shape: Its shape, padding included.
        pieces: What lies where in it.
    """

    name: str
    shape: Shape
    pieces: tuple[EnginePiece, ...]

    @property
    def module(self) -> str:
        """vLLM's name of the module that it belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def kept(self) -> int:
        """Elements that come from the checkpoint: without padding."""
        return sum(piece.hf.numel for piece in self.pieces)


def engine_parameters(spec: ModelSpec, engine: EngineTopology, rank: int) -> list[EngineParameter]:
    """Every parameter of one rank: embedding, layer by layer, head; those of one module together.

    Without what is not trained: see `untouched_parameters`.

    Raises:
        UserError: A size cannot be cut, or vLLM's layout of the family is not known here.
    """
    found: dict[str, EngineParameter] = {}
    for entry, layer in _in_order(spec):
        make = _experts if entry.per_expert else _single
        parameter = make(spec, engine, rank, entry, layer)
        before = found.get(parameter.name)
        found[parameter.name] = parameter if before is None else _below(before, parameter)
    modules: dict[str, list[EngineParameter]] = {}
    for parameter in found.values():
        modules.setdefault(parameter.module, []).append(parameter)
    return [parameter for module in modules.values() for parameter in module]


def untouched_parameters(spec: ModelSpec) -> set[str]:
    """vLLM's names of what is not trained, which an engine has loaded for good.

    It is not sent: it is kept in float32, and rounded to what is sent it would choose other experts.
    """
    entries = [entry for entry in spec.entries if not entry.trained]
    return {
        tensor.name.format(layer=layer)
        for entry in entries
        for tensor in entry.tensors
        for layer in range(spec.num_layers)
        if spec.has(entry, layer)
    }


def _in_order(spec: ModelSpec) -> Iterator[tuple[Entry, int]]:
    trained = [entry for entry in spec.entries if entry.trained]
    single = [entry for entry in trained if not entry.per_layer]
    yield from ((e, 0) for e in single if e.parameter.startswith("embedding."))
    for layer in range(spec.num_layers):
        yield from ((e, layer) for e in trained if e.per_layer and spec.has(e, layer))
    yield from ((e, 0) for e in single if not e.parameter.startswith("embedding."))


def _single(
    spec: ModelSpec, engine: EngineTopology, rank: int, entry: Entry, layer: int
) -> EngineParameter:
    operation, shapes = _resolve(spec, entry)
    _check(entry, operation, shapes, engine.tp)
    names = [tensor.name.format(layer=layer) for tensor in entry.tensors]
    return EngineParameter(
        _fused(spec, names[0]),
        operation.local_shape(shapes, engine.tp),
        tuple(
            EnginePiece(names[piece.source], piece.hf, piece.local)
            for piece in operation.pieces(shapes, rank, engine.tp)
        ),
    )


def _experts(
    spec: ModelSpec, engine: EngineTopology, rank: int, entry: Entry, layer: int
) -> EngineParameter:
    operation, shapes = _resolve(spec, entry)
    if engine.expert_parallel and spec.num_experts % engine.tp:
        raise UserError(
            f"{spec.num_experts} experts cannot be dealt evenly to {engine.tp} ranks",
            where="rollout.tensor_parallel",
            fix="use a size that divides them, or set rollout.expert_parallel=false",
        )
    experts = spec.num_experts // (engine.tp if engine.expert_parallel else 1)
    first = rank * experts if engine.expert_parallel else 0
    tp, tp_rank = (1, 0) if engine.expert_parallel else (engine.tp, rank)
    _check(entry, operation, shapes, tp)
    pieces = operation.pieces(shapes, tp_rank, tp)
    block = entry.tensors[0].name.split("{expert}")[0].format(layer=layer)
    return EngineParameter(
        block + EXPERTS[type(operation)],
        (experts, *operation.local_shape(shapes, tp)),
        tuple(
            EnginePiece(
                entry.tensors[piece.source].name.format(layer=layer, expert=first + index),
                piece.hf,
                Rect(((index, index + 1), *piece.local.ranges)),
            )
            for index in range(experts)
            for piece in pieces
        ),
    )


def _resolve(spec: ModelSpec, entry: Entry) -> tuple[Operation, list[Shape]]:
    operation = entry.operation(spec.dims)
    counterpart = COUNTERPARTS.get(type(operation))
    if counterpart is None or (entry.per_expert and type(operation) not in EXPERTS):
        raise UserError(
            f"{entry.tensors[0].name} of {spec.family.architectures[0]} cannot be streamed into vLLM: "
            f"how vLLM lays out {type(operation).__name__} is not known",
            where=str(spec.path),
            fix="add its counterpart to megarlhf/sync/engine_operations.py",
        )
    return counterpart(operation), [tensor.resolve(spec.dims) for tensor in entry.tensors]


def _check(entry: Entry, operation: Operation, shapes: list[Shape], tp: int) -> None:
    dim = operation.partition_dim
    vocabulary = entry.parameter in ("embedding.word_embeddings.weight", "output_layer.weight")
    sizes = [] if dim is None or vocabulary else [shape[dim] for shape in shapes]
    groups = getattr(operation, "groups", None)
    if groups is not None:  # heads are not cut: every rank has whole ones, or a copy
        sizes = [] if tp % groups == 0 else [groups]
    for size in sizes:
        if size % tp:
            raise UserError(
                f"{size} rows or columns of {entry.tensors[0].name} cannot be cut into {tp}",
                where="rollout.tensor_parallel",
                fix="use a smaller size that divides them",
            )


def _fused(spec: ModelSpec, name: str) -> str:
    module, _, kind = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    for fused, parts in FUSED.items():
        if last in parts and all(f"{parent}.{part}.weight" in spec.tensors for part in parts):
            return f"{parent}.{fused}.{kind}"
    return name


def _below(upper: EngineParameter, lower: EngineParameter) -> EngineParameter:
    """Two entries that vLLM keeps in one parameter, one under the other."""
    rows = upper.shape[0]
    pieces = tuple(
        EnginePiece(
            piece.tensor,
            piece.hf,
            piece.local.along(0, *(row + rows for row in piece.local.ranges[0])),
        )
        for piece in lower.pieces
    )
    shape = (rows + lower.shape[0], *upper.shape[1:])
    return EngineParameter(upper.name, shape, upper.pieces + pieces)
