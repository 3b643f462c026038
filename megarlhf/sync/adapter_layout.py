"""Which part of which adapter a rank of an engine needs for the weights that it keeps.

Rows [a, b) and columns [c, d) of a weight need rows [a, b) of B and columns [c, d) of A. The parts are
given names of their own, as parameters that only the stream knows, so that they are planned and sent as
weights are (`sync/plan.py`). Pure functions on shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megarlhf.models.lora.adapter import PREFIX, AdapterSpec
from megarlhf.models.weights.operations import Rect
from megarlhf.sync.engine_layout import (
    EngineParameter,
    EnginePiece,
    EngineTopology,
    engine_parameters,
)


@dataclass(frozen=True)
class AdaptedPart:
    """A rectangle of an engine's parameter that an adapter adds to.

    Attributes:
        parameter: vLLM's name.
        target: Where in it; an expert's has a dimension more.
        down: A's columns for it.
        up: B's rows for it.
    """

    parameter: str
    target: Rect
    down: EngineParameter
    up: EngineParameter


def adapted_parts(spec: AdapterSpec, engine: EngineTopology, rank: int) -> Iterator[AdaptedPart]:
    """All of one rank, in the order of its parameters."""
    whole = (0, spec.adapter.rank)
    for parameter in engine_parameters(spec.base, engine, rank):
        for number, piece in enumerate(parameter.pieces):
            module = PREFIX + piece.tensor.removesuffix("weight")
            if f"{module}lora_A.weight" not in spec.tensors:
                continue
            rows, columns = piece.hf.ranges
            name = f"{parameter.name}#{number}"
            yield AdaptedPart(
                parameter.name,
                piece.local,
                _part(f"{name}.A", f"{module}lora_A.weight", Rect((whole, columns))),
                _part(f"{name}.B", f"{module}lora_B.weight", Rect((rows, whole))),
            )


def adapter_parameters(
    spec: AdapterSpec, engine: EngineTopology, rank: int
) -> list[EngineParameter]:
    """What one rank of an engine is sent."""
    parts = adapted_parts(spec, engine, rank)
    return [matrix for part in parts for matrix in (part.down, part.up)]


def _part(name: str, tensor: str, rect: Rect) -> EngineParameter:
    return EngineParameter(name, rect.shape, (EnginePiece(tensor, rect, Rect.whole(rect.shape)),))
