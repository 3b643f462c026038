"""How vLLM cuts and fuses what Megatron cuts and fuses otherwise: operations for the engine's side.

The counterpart of `models/weights/operations.py`; what is cut alike (linears, gate and up) is taken
from there. As read in vllm 0.32.0, and held against a live engine by the tests.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from megarlhf.models.weights.operations import (
    Cut,
    Operation,
    Piece,
    QueryKeyValue,
    Rect,
    Replicated,
    Shape,
    Stacked,
    Vocabulary,
)

VOCABULARY_MULTIPLE = 64  # vLLM pads the vocabulary to it before it cuts


@dataclass(frozen=True)
class EngineQueryKeyValue(Operation):
    """This rank's query heads, its key heads, its value heads, one under the other.

    Where there are fewer key/value heads (``groups``) than ranks, each is on several ranks.
    """

    groups: int
    partition_dim: ClassVar[int] = 0

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        rows = sum(self._rows(source, shape, 0, tp)[1] for source, shape in enumerate(shapes))
        return (rows, *shapes[0][1:])

    def pieces(self, shapes: Sequence[Shape], tp_rank: int, tp: int) -> list[Piece]:
        pieces, offset = [], 0
        for source, shape in enumerate(shapes):
            start, rows = self._rows(source, shape, tp_rank, tp)
            whole = Rect.whole(shape)
            pieces.append(
                Piece(
                    source,
                    whole.along(0, start, start + rows),
                    whole.along(0, offset, offset + rows),
                )
            )
            offset += rows
        return pieces

    def _rows(self, source: int, shape: Shape, tp_rank: int, tp: int) -> tuple[int, int]:
        """First row and number of rows that a rank has of one of the three."""
        parts = tp if source == 0 else min(tp, self.groups)
        rows = shape[0] // parts
        return tp_rank * parts // tp * rows, rows


class EngineVocabulary(Vocabulary):
    """Embedding or output rows, padded to a multiple of 64, then cut."""

    def local_shape(self, shapes: Sequence[Shape], tp: int) -> Shape:
        padded = -(-shapes[0][0] // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return (padded // tp, *shapes[0][1:])


def _same(operation: Operation) -> Operation:
    return operation


COUNTERPARTS: Mapping[type[Operation], Callable[..., Operation]] = {
    Replicated: _same,
    Cut: _same,
    Stacked: _same,
    Vocabulary: lambda _: EngineVocabulary(),
    QueryKeyValue: lambda operation: EngineQueryKeyValue(operation.groups),
}

# vLLM's modules that hold several of the checkpoint's, in models that have all of these.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}

# All experts of a layer are one parameter: gate and up of each, down of each.
EXPERTS = {Stacked: "routed_experts.w13_weight", Cut: "routed_experts.w2_weight"}
