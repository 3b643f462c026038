"""The trainer's weights as sources of vLLM's own weight-transfer engines, under Hugging Face's names.

For programs that use those engines in place of our stream. What lies where is read off the layout map,
as everywhere else. Sources are collective over the ranks that share a model's layers.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.m2n_common import (
    REPLICATE,
    REPLICATED,
    M2NMesh,
    M2NParamMeta,
)
from vllm.distributed.weight_transfer.m2n_source import M2NWeightSource

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.operations import Rect
from megarlhf.parallel.topology import Topology
from megarlhf.sync.shards import Shards, even_cuts


class WholeTensors(WeightSource):
    """Whole tensors, of the layers and experts that this rank shares: for ``sharded_rdt`` and ``nccl``.

    Args:
        spec: The model.
        topology: Its layout.
        rank: This rank.
        chunks: This rank's model chunks, not wrapped (`ModelEngine.chunks`).
        group: The tensor-parallel group, over which parts are gathered.
        dtype: Of what is sent; tensors that are not trained stay fp32.
    """

    def __init__(
        self,
        spec: ModelSpec,
        topology: Topology,
        rank: int,
        chunks: Sequence[nn.Module],
        group: dist.ProcessGroup,
        dtype: torch.dtype,
    ) -> None:
        self._spec, self._group, self._dtype = spec, group, dtype
        self._live = [dict(chunk.named_parameters()) for chunk in chunks]
        members = dist.get_process_group_ranks(group)
        self._members = {member: Shards(spec, topology, member) for member in members}
        self._mine = self._members[rank]
        self._rank = rank

    def metadata(self) -> list[ParamMeta]:
        """Of every tensor of the model, the same on every rank."""
        return [
            ParamMeta(name, self._spec.dtype_of(name, self._dtype), tuple(shape))
            for name, shape in self._spec.tensors.items()
        ]

    def held_names(self) -> set[str]:
        """Those of this rank's stage and experts."""
        return set(self._mine.names())

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Names in the order of `groups`; None for those that are not held here."""
        held = self.held_names()
        for group in self.groups():
            for name in group:
                yield name, self._gathered(name) if name in held else None

    def _gathered(self, name: str) -> torch.Tensor:
        dtype, shape = self._spec.dtype_of(name, self._dtype), tuple(self._spec.tensors[name])
        device = next(iter(self._live[0].values())).device
        whole = torch.empty(shape, dtype=dtype, device=device)
        own = self._mine.values(name, self._live, dtype)
        is_cut = self._mine.rects(name) != [Rect.whole(shape)]
        for member, shards in self._members.items() if is_cut else [(self._rank, self._mine)]:
            rects = shards.rects(name)
            if member == self._rank:
                flat = torch.cat([value.reshape(-1) for value in own])
            else:
                flat = whole.new_empty(sum(rect.numel for rect in rects))
            if is_cut:
                dist.broadcast(flat, member, group=self._group)
            parts = flat.split([rect.numel for rect in rects])
            for rect, part in zip(rects, parts, strict=True):
                whole[rect.slices] = part.view(rect.shape)
        return whole


class LocalShards(M2NWeightSource):
    """This rank's shards, for ``nccl_m2n``, which sends from one layout into the other.

    That engine knows one mesh for all tensors, and even cuts: tensor and data parallelism.

    Args:
        spec: The model.
        topology: Its layout.
        rank: This rank.
        chunks: This rank's model chunks, not wrapped.
        dtype: Of what is sent; tensors that are not trained stay fp32.

    Raises:
        UserError: The layout is not one that the engine can express.
    """

    def __init__(
        self,
        spec: ModelSpec,
        topology: Topology,
        rank: int,
        chunks: Sequence[nn.Module],
        dtype: torch.dtype,
    ) -> None:
        self._cuts = even_cuts(spec, topology, rank)
        self._spec, self._topology, self._dtype = spec, topology, dtype
        self._live = [dict(chunk.named_parameters()) for chunk in chunks]
        self._shards = Shards(spec, topology, rank)

    def mesh(self) -> M2NMesh:
        """Replicas by tensor ranks, which are numbered first."""
        tp = self._topology.tp
        return M2NMesh((self._topology.world // tp, tp), 0)

    def metadata(self) -> list[ParamMeta]:
        """Of every tensor, with the dimension that is cut."""
        return [
            M2NParamMeta(
                name,
                self._spec.dtype_of(name, self._dtype),
                tuple(self._spec.tensors[name]),
                REPLICATED if dim is None else (REPLICATE, dim),
            )
            for name, dim in self._cuts.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor's local shard."""
        for name in self._cuts:
            box = self._shards.box(name)
            dtype = self._spec.dtype_of(name, self._dtype)
            values = self._shards.values(name, self._live, dtype)
            shard = torch.empty(box.shape, dtype=dtype, device=values[0].device)
            starts = [start for start, _ in box.ranges]
            for rect, value in zip(self._shards.rects(name), values, strict=True):
                ranges = zip(rect.ranges, starts, strict=True)
                shard[tuple(slice(b - first, e - first) for (b, e), first in ranges)] = value
            yield name, shard
