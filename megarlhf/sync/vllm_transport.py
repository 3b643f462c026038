"""vLLM's own ``nccl_m2n`` in place of our stream: each rank gives its shards, vLLM cuts and loads them.

Written for vllm 0.32.0. Its two ends are vLLM's; what its trainer's end would have said to an engine
over HTTP it leaves in the link's store, where the engine finds it when our driver calls it.
"""

import importlib.util
import json
import socket
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.stores import find_store
from megarlhf.parallel.topology import Topology
from megarlhf.sync.fingerprints import Fingerprints
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.plan import Worker
from megarlhf.sync.sender import Sent
from megarlhf.sync.shards import even_cuts

NAME = "nccl_m2n"
PACKAGE = "nccl.m2n"
OURS = "use stream.transport=auto"


def check_m2n(spec: ModelSpec, topology: Topology, *, adapters: bool, verify: str) -> None:
    """vLLM's ``nccl_m2n`` can bring this model from that layout.

    Args:
        spec: The model.
        topology: The trainer's layout.
        adapters: Whether only adapters are trained.
        verify: ``stream.verify``.

    Raises:
        UserError: It cannot; says why.
    """
    why = None
    if not _is_installed(PACKAGE):
        why = f"needs the Python module {PACKAGE} (package nccl-extensions), which is not installed"
    elif adapters:
        why = "sends whole models, and only adapters are trained (lora.rank)"
    elif verify != "never":
        why = "has no fingerprints to compare, which stream.verify asks for"
    if why is not None:
        fix = "set stream.verify=never, or " + OURS if "verify" in why else OURS
        raise UserError(f"vLLM's {NAME} {why}", where="stream.transport", fix=fix)
    for rank in range(topology.tp):
        even_cuts(spec, topology, rank)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


class Notes:
    """What the trainer's end of vLLM's has to say to an engine, on a link of its own.

    Args:
        info: What both ends agreed on.
        store: The store, where this end already has one (trainer rank 0 serves it).
    """

    def __init__(self, info: StreamInfo, store: dist.Store | None = None) -> None:
        if store is None:
            store = find_store(info.host, info.port, info.patience_s)
        self._store, self._scoped = store, dist.PrefixStore(info.name, store)
        self._updates = 0

    def leave(self, key: str, said: Any) -> None:
        """Something that is JSON."""
        self._scoped.set(key, json.dumps(said))

    def read(self, key: str) -> Any:
        """Wait for it."""
        return json.loads(self._scoped.get(key))

    def read_update(self) -> dict[str, Any]:
        """What belongs to the next update."""
        self._updates += 1
        return self.read(f"update{self._updates}")

    # -- what vLLM calls: its VLLMWeightSyncClient ------------------------------------------------

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The engine reads it when it joins."""
        self.leave("init", init_info)

    def start_weight_update(self) -> None:
        """Our driver calls the engine."""

    def update_weights(self, update_info: Any) -> None:
        """The engine reads it when it is called."""
        self._updates += 1
        self.leave(f"update{self._updates}", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Our driver waits for the engine."""


class M2NSender:
    """A trainer rank's end towards engines, each in a communicator of its own; see `Sender`.

    Args:
        spec: The model.
        chunks: This rank's model chunks (not wrapped).
        rank: This trainer rank.
    """

    def __init__(self, spec: ModelSpec, chunks: Sequence[nn.Module], rank: int) -> None:
        self._spec, self._chunks, self._rank = spec, chunks, rank
        self._ends: dict[int, Any] = {}

    def connect(
        self, info: StreamInfo, device: torch.device, store: dist.Store | None = None
    ) -> None:
        """Meet an engine; one of the same number is forgotten."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.m2n_trainer import M2NTrainerInitInfo

        from megarlhf.sync.vllm_sources import LocalShards

        self._ends.pop(info.number, None)
        self._device, self._timeout_s = device, info.timeout_s
        topology, workers = info.trainer_topology, info.engine_topology.tp
        source = LocalShards(self._spec, topology, self._rank, self._chunks, info.wire_dtype)
        self._nbytes = sum(
            shard.numel() * shard.element_size() for _, shard in source
        )  # the same every time
        notes = Notes(info, store)
        if self._rank == 0:
            notes.leave("port", _free_port(info.host))
        self._ends[info.number] = WeightTransferTrainerFactory.trainer_init(
            M2NTrainerInitInfo(
                rank=self._rank,
                master_address=info.host,
                master_port=notes.read("port"),
                world_size=topology.world + workers,
                num_trainer_ranks=topology.world,
                dst_mesh_dims=(1, workers),
            ),
            client=notes,
            source=source,
        )

    def send(self, engines: Sequence[int]) -> dict[int, Sent]:
        """Give this rank's shards to some engines.

        Raises:
            UserError: An engine did not take them in time. What was queued on the GPU cannot be taken
                back, so the run has to end.
        """
        found = {}
        for number in engines:
            errors: list[str] = []
            thread = threading.Thread(target=self._send, args=(number, errors), daemon=True)
            thread.start()
            thread.join(self._timeout_s)
            if thread.is_alive():
                raise UserError(
                    f"engine {number} did not take an update within {self._timeout_s:g} s",
                    where="cluster.stream_timeout_s",
                    fix=f"look for the cause in the engine's log; {NAME} cannot go on without an "
                    "engine, our own stream can: stream.transport=auto",
                )
            found[number] = Sent(0 if errors else self._nbytes, errors[0] if errors else None)
        return found

    def fingerprints(self, engines: Sequence[int]) -> dict[Worker, Fingerprints]:
        """None: see `check_m2n`."""
        raise AssertionError("stream.verify is never")

    @torch.no_grad()
    def _send(self, number: int, errors: list[str]) -> None:
        """In a thread, whose device has to be chosen."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            torch.cuda.synchronize()
        try:
            self._ends[number].send_weights()
        except RuntimeError as error:  # NCCL's: the peer is gone
            errors.append(" ".join(str(error).split()))


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
