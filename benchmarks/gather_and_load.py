"""The usual way of an update, to compare with: whole tensors through vLLM's ``load_weights``.

Every rank sends its parts to the first, which puts whole Hugging Face tensors together and sends them,
bucket by bucket. The engine loads them; where its linears are packed, through layerwise reload. Both
ends keep their buffers, as a caching allocator would, except where layerwise reload holds on to them.
"""

import datetime
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.stream_ranks import Rank, Ranks
from megarlhf.models.weights.layout import holdings
from megarlhf.parallel.stores import find_store, serve_store

TIMEOUT = datetime.timedelta(seconds=60)
Tensors = list[tuple[str, tuple[int, ...]]]


class GatherAndLoad:
    """Call it for an update.

    Args:
        ranks: They hold the parts.
        shapes: Of the whole tensors, by name.
        bucket_bytes: Whole tensors of at most so many bytes travel together, or one.
        packed: Whether the engine's linears are packed.
    """

    def __init__(
        self,
        ranks: Ranks,
        shapes: dict[str, tuple[int, ...]],
        bucket_bytes: int,
        *,
        packed: bool,
    ) -> None:
        self._ranks, self._packed = ranks, packed
        self._buckets = _buckets(shapes, bucket_bytes)
        world = ranks.topology.world
        self._store = serve_store("127.0.0.1", timeout_s=60)
        joining = ranks.engine.start(join, self._store.port, world, world + 1)
        ranks.call(join_rank, self._store.port, world + 1)
        ranks.engine.wait(joining)

    def __call__(self) -> None:
        """One update."""
        receiving = self._ranks.engine.start(receive, self._buckets, self._packed)
        self._ranks.call(send, self._buckets)
        self._ranks.engine.wait(receiving)


def _buckets(shapes: dict[str, tuple[int, ...]], most: int) -> list[Tensors]:
    buckets: list[Tensors] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = 4 * torch.Size(shape).numel()
        if buckets[-1] and size + nbytes > most:
            buckets.append([])
            size = 0
        buckets[-1].append((name, shape))
        size += nbytes
    return buckets


class Usual:
    """A process's end: its group and a buffer that grows to the largest message."""

    def __init__(self, port: int, rank: int, size: int) -> None:
        store = find_store("127.0.0.1", port)
        scoped = dist.PrefixStore("usual", store)
        self.group = dist.ProcessGroupGloo(scoped, rank, size, TIMEOUT)
        self._kept = {"whole": torch.empty(0), "part": torch.empty(0)}

    def buffer(self, kind: str, size: int) -> torch.Tensor:
        """[size] float32, the same memory again and again."""
        if self._kept[kind].numel() < size:
            self._kept[kind] = torch.empty(size)
        return self._kept[kind][:size]


def join_rank(rank: Rank, port: int, size: int) -> None:
    """Runs in a rank: meet the others and the engine."""
    rank.usual = Usual(port, rank.rank, size)
    rank.held = holdings(rank.spec, rank.topology)


@torch.no_grad()
def send(rank: Rank, buckets: list[Tensors]) -> None:
    """Runs in a rank: give the first its parts; the first sends the whole tensors."""
    group = rank.usual.group
    for bucket in buckets:
        sizes = [torch.Size(shape).numel() for _, shape in bucket]
        message = rank.usual.buffer("whole", sum(sizes)) if rank.rank == 0 else None
        whole = message.split(sizes) if rank.rank == 0 else [None] * len(bucket)
        for (name, shape), tensor in zip(bucket, whole, strict=True):
            for part in rank.held[name]:
                values = None
                if rank.rank == part.rank:
                    values = rank.parameters[part.chunk][part.parameter][part.piece.local.slices]
                    if rank.rank:
                        group.send([values.contiguous().view(-1)], 0, 0).wait()
                elif rank.rank == 0:
                    values = rank.usual.buffer("part", part.piece.hf.numel)
                    group.recv([values], part.rank, 0).wait()
                if tensor is not None:
                    place = tensor.view(shape)[part.piece.hf.slices]
                    place.copy_(values.view(place.shape))
        if message is not None:
            group.send([message], rank.topology.world, 0).wait()


def join(engine: Any, port: int, rank: int, size: int) -> None:
    """Runs in the engine: meet the ranks."""
    engine.usual = Usual(port, rank, size)


@torch.no_grad()
def receive(engine: Any, buckets: list[Tensors], packed: bool) -> None:
    """Runs in the engine: receive whole tensors and load them."""
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for bucket in buckets:
            sizes = [torch.Size(shape).numel() for _, shape in bucket]
            size = sum(sizes)
            message = torch.empty(size) if packed else engine.usual.buffer("whole", size)
            engine.usual.group.recv([message], 0, 0).wait()
            for (name, shape), values in zip(bucket, message.split(sizes), strict=True):
                yield name, values.view(shape)

    def load(worker: Any) -> None:
        from vllm.config import set_current_vllm_config

        model = worker.get_model()
        with set_current_vllm_config(worker.vllm_config):
            if packed:
                initialize_layerwise_reload(model)
            model.load_weights(tensors())
            if packed:
                finalize_layerwise_reload(model, worker.model_config)

    engine._llm.collective_rpc(load)
    engine._llm.reset_prefix_cache()
