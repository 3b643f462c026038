"""What one rank has of each Hugging Face tensor: boxes, and how vLLM's ``nccl_m2n`` would name the cut.

Pure functions of shapes, read off the layout map; no vLLM.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import Parameter, parameters_of
from megarlhf.models.weights.operations import Piece, Rect
from megarlhf.parallel.topology import Topology


class Shards:
    """One rank's parts of Hugging Face tensors."""

    def __init__(self, spec: ModelSpec, topology: Topology, rank: int) -> None:
        self._parts: dict[str, list[tuple[Parameter, Piece]]] = defaultdict(list)
        seen = set()
        for parameter in parameters_of(spec, topology, rank):
            for piece in parameter.pieces:
                name = parameter.sources[piece.source]
                if (name, piece.hf) not in seen:  # not again from a tied copy
                    seen.add((name, piece.hf))
                    self._parts[name].append((parameter, piece))
        for parts in self._parts.values():
            parts.sort(key=lambda part: part[1].hf)

    def names(self) -> Collection[str]:
        """Tensors of which the rank has a part."""
        return self._parts.keys()

    def rects(self, name: str) -> list[Rect]:
        """The boxes of a tensor that it has, in order."""
        return [piece.hf for _, piece in self._parts[name]]

    def box(self, name: str) -> Rect:
        """The box that they make up together."""
        ranges = zip(*(rect.ranges for rect in self.rects(name)), strict=True)
        return Rect(tuple((min(b for b, _ in r), max(e for _, e in r)) for r in ranges))

    def values(
        self, name: str, live: Sequence[Mapping[str, nn.Parameter]], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """What is in them."""
        return [
            live[parameter.chunk][parameter.name].detach()[piece.local.slices].to(dtype)
            for parameter, piece in self._parts[name]
        ]


def even_cuts(spec: ModelSpec, topology: Topology, rank: int) -> dict[str, int | None]:
    """Along which dimension each tensor is cut evenly, by tensor parallelism; None: it is whole.

    Raises:
        UserError: The layout has other cuts, which vLLM's ``nccl_m2n`` cannot express.
    """
    if topology.pp > 1 or topology.ep > 1:
        raise UserError(
            "vLLM's nccl_m2n knows tensors that all ranks hold, not stages or cut experts",
            where="model.parallel",
            fix="use pipeline=1 and expert=1, or our own stream",
        )
    shards, place = Shards(spec, topology, rank), topology.coordinates(rank).tp
    return {
        name: _even_cut(shards, name, tuple(shape), place, topology.tp)
        for name, shape in spec.tensors.items()
    }


def _even_cut(shards: Shards, name: str, shape: tuple[int, ...], place: int, tp: int) -> int | None:
    box = shards.box(name)
    if sum(rect.numel for rect in shards.rects(name)) == box.numel:
        if box == Rect.whole(shape):
            return None
        for dim, size in enumerate(shape):
            part = size // tp
            if box == Rect.whole(shape).along(dim, place * part, (place + 1) * part):
                return dim
    raise UserError(
        f"vLLM's nccl_m2n knows even cuts only, and {name} {list(shape)} is cut otherwise",
        where="model.parallel.tensor",
        fix="use a size that divides the key/value heads and the vocabulary, or our own stream",
    )
