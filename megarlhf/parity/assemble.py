"""From the files of a layout's ranks to whole tensors: outputs in token order, gradients in pieces.

Canonical form of an output: [T, w], the real tokens (no padding) of sequence 0, then of sequence 1 ...
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.models.weights.operations import Rect
from megarlhf.parallel.topology import Coordinates
from megarlhf.parity import names
from megarlhf.parity.records import Pack, RankRun, Request


@dataclass(frozen=True)
class GradientPiece:
    """A rectangle of a Hugging Face tensor's gradient, as one rank has it."""

    name: str
    rank: int
    rect: Rect
    values: torch.Tensor


class LayoutRun:
    """What the ranks of one layout wrote and reported.

    Args:
        spec: The model.
        request: What they were asked for.
        runs: What they reported.
    """

    def __init__(self, spec: ModelSpec, request: Request, runs: Sequence[RankRun]) -> None:
        layout = request.layout
        self._spec, self.layout, self._lengths = spec, layout, request.batch.lengths
        self._topology = layout.topology
        self._files = [safe_open(request.file_of(rank), "pt") for rank in range(layout.world)]
        self._keys = [set(file.keys()) for file in self._files]
        places = [self._topology.coordinates(rank) for rank in range(layout.world)]
        self._rank_at = {place: rank for rank, place in enumerate(places)}
        self._packs = {
            (place.dp, place.cp): run.packs
            for place, run in zip(places, runs, strict=True)
            if run.packs
        }
        self.losses, self.grad_norm = runs[0].losses, runs[0].grad_norm
        self.same_everywhere = all(
            run.losses == self.losses and str(run.grad_norm) == str(self.grad_norm) for run in runs
        )

    def outputs(self, module: str) -> list[torch.Tensor]:
        """A module's output in canonical form, once for each replica among the tensor ranks."""
        key = names.output_key(module, 0)
        stage = next(place.pp for place, rank in self._rank_at.items() if key in self._keys[rank])
        return [
            self._in_token_order(module, stage, variant)
            for variant in range(self._replicas(module))
        ]

    def _replicas(self, module: str) -> int:
        is_vocabulary = module == names.LOGITS and self._spec.scalar_head is None
        whole = is_vocabulary or (self.layout.sp and module != names.LOGITS)
        return 1 if whole else self.layout.tp

    def _in_token_order(self, module: str, stage: int, variant: int) -> torch.Tensor:
        """Every token where its rank said that it is from; NaN where no rank had one."""
        rows, parts = [], []
        for (dp, cp), packs in self._packs.items():
            for number, pack in enumerate(packs):
                parts.append(self._local(module, number, variant, dp=dp, cp=cp, pp=stage))
                rows += self._rows_of(pack)
        tokens = torch.cat(parts)
        real = torch.tensor([row is not None for row in rows])
        whole = tokens.new_full((sum(self._lengths), tokens.shape[1]), float("nan"))
        whole[[row for row in rows if row is not None]] = tokens[real]
        return whole

    def _rows_of(self, pack: Pack) -> Iterator[int | None]:
        """Each token's place in the canonical form; None for padding."""
        positions = iter(pack.position_ids)
        for index, length in zip(pack.order, pack.lengths, strict=True):
            begin = sum(self._lengths[:index])
            for position in itertools.islice(positions, length):
                yield begin + position if position < self._lengths[index] else None

    def _local(self, module: str, number: int, variant: int, **place: int) -> torch.Tensor:
        """A context rank's tokens of a micro-batch, [T / cp, w], tensor ranks' parts put together."""
        key = names.output_key(module, number)

        def of(tp: int) -> torch.Tensor:
            rank = self._rank_at[Coordinates(tp=tp, **place)]
            return self._files[rank].get_tensor(key)

        if module == names.LOGITS and self._spec.scalar_head is not None:
            return of(variant)
        if module == names.LOGITS:
            columns = torch.cat([of(tp) for tp in range(self.layout.tp)], dim=1)
            return columns[:, : self._spec.vocab_size]
        if self.layout.sp:
            return torch.cat([of(tp) for tp in range(self.layout.tp)])
        return of(variant)

    def gradient_pieces(self) -> Iterator[GradientPiece]:
        """Every rank's copy of every rectangle: replicated parameters come several times."""
        for rank, file in enumerate(self._files):
            for parameter in parameters_of(self._spec, self._topology, rank):
                if not parameter.trained:
                    continue
                local = file.get_tensor(names.gradient_key(parameter.chunk, parameter.name))
                for piece in parameter.pieces:
                    name = parameter.sources[piece.source]
                    yield GradientPiece(name, rank, piece.hf, local[piece.local.slices])

    def gradients(self) -> dict[str, torch.Tensor]:
        """Whole gradients by Hugging Face name, of each rectangle the first copy."""
        whole: dict[str, torch.Tensor] = {}
        filled = set()
        for piece in self.gradient_pieces():
            if piece.name not in whole:
                whole[piece.name] = piece.values.new_full(
                    self._spec.tensors[piece.name], float("nan")
                )
            if (piece.name, piece.rect) not in filled:
                filled.add((piece.name, piece.rect))
                whole[piece.name][piece.rect.slices] = piece.values
        return whole
