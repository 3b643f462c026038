"""The usual way of an update, to compare with: whole tensors through vLLM's ``load_weights``.

Every rank sends its parts to the first, which puts whole Hugging Face tensors together and sends them,
bucket by bucket. The engine loads them; where its linears are packed, through layerwise reload.
"""

import datetime
from collections.abc import Iterator
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist

from megarlhf.models.weights.layout import holdings
from megarlhf.sync.link import serve_store
from tests.rollout.engine_process import EngineProcess, Trainer

BUCKET = 32 * 2**20
TIMEOUT = datetime.timedelta(seconds=60)
Tensors = list[tuple[str, tuple[int, ...]]]


class GatherAndLoad:
    """Call it for an update.

    Args:
        trainer: Its ranks hold the parts.
        tensors: The whole tensors, for their names and shapes.
        process: The engine.
        packed: Whether its linears are packed.
    """

    def __init__(
        self,
        trainer: Trainer,
        tensors: dict[str, torch.Tensor],
        process: EngineProcess,
        *,
        packed: bool,
    ) -> None:
        self._process, self._packed = process, packed
        self._held = holdings(trainer.spec, trainer.topology)
        self._parameters = [sender._parameters for sender in trainer.senders]
        self._buckets = _buckets({name: tuple(t.shape) for name, t in tensors.items()})
        self._world = trainer.topology.world
        self._store = serve_store("127.0.0.1", timeout_s=60)
        joining = process.start(join, self._store.port, self._world)
        self._groups: list[Any] = [None] * self._world
        self._on_every_rank(self._join)
        process.wait(joining)

    def __call__(self) -> None:
        """One update."""
        receiving = self._process.start(receive, self._buckets, self._packed)
        self._on_every_rank(self._send)
        self._process.wait(receiving)

    def _join(self, rank: int) -> None:
        self._groups[rank] = _group(self._store.port, rank, self._world + 1)

    @torch.no_grad()
    def _send(self, rank: int) -> None:
        group = self._groups[rank]
        for bucket in self._buckets:
            whole = []
            for name, shape in bucket:
                tensor = torch.empty(shape) if rank == 0 else None
                for part in self._held[name]:
                    if rank == part.rank:
                        live = self._parameters[rank][part.chunk][part.parameter]
                        values = live[part.piece.local.slices]
                        if rank:
                            group.send([values.contiguous()], 0, 0).wait()
                    elif rank == 0:
                        values = torch.empty(part.piece.hf.shape)
                        group.recv([values], part.rank, 0).wait()
                    if tensor is not None:
                        tensor[part.piece.hf.slices] = values
                whole.append(tensor)
            if rank == 0:
                message = torch.cat([tensor.view(-1) for tensor in whole])
                group.send([message], self._world, 0).wait()

    def _on_every_rank(self, act: Any) -> None:
        threads = [Thread(target=act, args=(rank,)) for rank in range(self._world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _buckets(shapes: dict[str, tuple[int, ...]]) -> list[Tensors]:
    buckets: list[Tensors] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = 4 * torch.Size(shape).numel()
        if buckets[-1] and size + nbytes > BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append((name, shape))
        size += nbytes
    return buckets


def _group(port: int, rank: int, size: int) -> dist.ProcessGroupGloo:
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
    return dist.ProcessGroupGloo(dist.PrefixStore("usual", store), rank, size, TIMEOUT)


def join(engine: Any, port: int, world: int) -> None:
    """Runs in the engine: meet the ranks."""
    engine.usual = _group(port, world, world + 1)


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
            message = torch.empty(sum(sizes))
            engine.usual.recv([message], 0, 0).wait()
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
