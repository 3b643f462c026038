"""Which rank sends which rectangle to which engine rank, in which bucket: computed once, then replayed.

A pure function of shapes, so both ends compute it for themselves and no names travel with the weights.
The cut of the trainer (`models/weights/layout.py`) is intersected with that of the engine
(`engine_layout.py`): every rank of an engine is sent exactly what it keeps. Where several ranks of the
trainer hold a rectangle, the one that has sent least gives it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.models.weights.operations import Rect
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineParameter, EngineTopology, engine_parameters
from megarlhf.sync.rectangles import carried, intersection

Worker = tuple[int, int]  # engine and rank in it


@dataclass(frozen=True, slots=True)
class Move:
    """``engine_parameter[target] = parameter[source]``.

    Attributes:
        tensor: The Hugging Face tensor that both are of.
        chunk: Model chunk on the sender.
        parameter: Megatron's name in that chunk.
        source: Where in it.
        engine_parameter: vLLM's name.
        target: Where in that one.
    """

    tensor: str
    chunk: int
    parameter: str
    source: Rect
    engine_parameter: str
    target: Rect


@dataclass
class Bucket:
    """Engine parameters that travel together: whole modules, so that the engine can finish them.

    Attributes:
        names: vLLM's names of them.
        messages: For each worker and each sender to it, what the one message consists of, in order.
    """

    names: list[str] = field(default_factory=list)
    messages: dict[Worker, dict[int, list[Move]]] = field(default_factory=dict)


def numel(moves: Sequence[Move]) -> int:
    """Elements of a message."""
    return sum(move.source.numel for move in moves)


def workers_of(engine: EngineTopology) -> list[Worker]:
    """Every rank of every engine."""
    return [(number, rank) for number in range(engine.engines) for rank in range(engine.tp)]


def plan_stream(
    spec: ModelSpec,
    trainer: Topology,
    engine: EngineTopology,
    bucket_elements: int,
    layout: Callable[..., list[EngineParameter]] = engine_parameters,
) -> list[Bucket]:
    """The buckets of one full update.

    Args:
        spec: The model.
        trainer: The trainer's layout.
        engine: The engines'.
        bucket_elements: A bucket holds at most this many elements of one rank, if it holds more than
            one module.
        layout: What each rank of an engine is sent.
    """
    layouts = [layout(spec, engine, rank) for rank in range(engine.tp)]
    held = _held(spec, trainer)
    sent = [0] * trainer.world
    buckets = []
    for names in _cut(layouts, bucket_elements):
        bucket = Bucket([layouts[0][index].name for index in names])
        for index in names:
            routes = [_routes(layout[index], held) for layout in layouts]
            for number, rank in workers_of(engine):
                to = bucket.messages.setdefault((number, rank), {})
                _choose(routes[rank], sent, to)
        buckets.append(bucket)
    return buckets


_Place = tuple[int, str, Rect]  # of a rectangle on a rank: chunk, parameter, where in it


@dataclass(frozen=True)
class _Source:
    """A rectangle of a tensor and every rank that holds it, with the place there."""

    hf: Rect
    holders: dict[int, _Place]


def _held(spec: ModelSpec, trainer: Topology) -> dict[str, list[_Source]]:
    found: dict[str, dict[Rect, _Source]] = {name: {} for name in spec.tensors}
    copies: dict[tuple, list] = {}  # replicas hold the same under the same names
    for rank in range(trainer.world):
        place = trainer.coordinates(rank)
        key = (place.tp, place.pp, trainer.expert_rank(rank))
        if key not in copies:
            copies[key] = parameters_of(spec, trainer, rank)
        for parameter in copies[key]:
            for piece in parameter.pieces:
                sources = found[parameter.sources[piece.source]]
                source = sources.setdefault(piece.hf, _Source(piece.hf, {}))
                source.holders.setdefault(rank, (parameter.chunk, parameter.name, piece.local))
    return {name: list(sources.values()) for name, sources in found.items()}


def _cut(layouts: Sequence[Sequence[EngineParameter]], most: int) -> Iterator[list[int]]:
    """Indices of the parameters of each bucket, in whole modules; the same on every rank."""
    bucket: list[int] = []
    elements = 0
    parameters = range(len(layouts[0]))
    for _, module in itertools.groupby(parameters, key=lambda index: layouts[0][index].module):
        indices = list(module)
        size = max(sum(layout[index].kept for index in indices) for layout in layouts)
        if bucket and elements + size > most:
            yield bucket
            bucket, elements = [], 0
        bucket += indices
        elements += size
    if bucket:
        yield bucket


@dataclass(frozen=True)
class _Route:
    """A part of an engine's parameter, and where it comes from: replicas and engines share moves."""

    source: _Source
    tensor: str
    part: Rect
    engine_parameter: str
    target: Rect
    elements: int
    moves: dict[_Place, Move] = field(default_factory=dict)

    def move_from(self, sender: int) -> Move:
        place = self.source.holders[sender]
        move = self.moves.get(place)
        if move is None:
            chunk, parameter, local = place
            source = carried(self.part, self.source.hf, local)
            move = Move(self.tensor, chunk, parameter, source, self.engine_parameter, self.target)
            self.moves[place] = move
        return move


def _routes(
    parameter: EngineParameter, held: dict[str, list[_Source]]
) -> dict[tuple[int, ...], list[_Route]]:
    """The parts of an engine's parameter, by the ranks of the trainer that hold them."""
    found: dict[tuple[int, ...], list[_Route]] = {}
    for piece in parameter.pieces:
        for source in held[piece.tensor]:
            part = intersection(source.hf, piece.hf)
            if part is not None:
                target = carried(part, piece.hf, piece.local)
                route = _Route(source, piece.tensor, part, parameter.name, target, part.numel)
                found.setdefault(tuple(source.holders), []).append(route)
    return found


def _choose(
    routes: dict[tuple[int, ...], list[_Route]], sent: list[int], to: dict[int, list[Move]]
) -> None:
    """Of each group of holders, the one that has sent least so far sends."""
    for holders, group in routes.items():
        sender = min(holders, key=lambda rank: (sent[rank], rank))
        to.setdefault(sender, []).extend(route.move_from(sender) for route in group)
        sent[sender] += sum(route.elements for route in group)
