"""torchrun keeps the processes: rank 0 drives, every rank keeps those on its device.

A model's rank r, and an engine on device r, are processes of torchrun's rank r: the very ones that Ray
would start. The driver calls them over connections of its own.
"""

import json
import os
import pickle
import secrets
import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing.connection import Listener
from typing import Any

from megarlhf.cluster.calls import Handle, Shared
from megarlhf.cluster.failures import explained
from megarlhf.cluster.host import Meeting, serve_host
from megarlhf.cluster.keepers import Keepers
from megarlhf.cluster.placement import Placement
from megarlhf.cluster.processes import Recipe
from megarlhf.config.placement_checks import ALL
from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError


def started_by_torchrun() -> bool:
    """Whether this process is one of its ranks."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def everywhere(config: RLConfig, world: int) -> RLConfig:
    """The configuration with every model, and the engines, on all ranks of torchrun.

    Raises:
        UserError: It places something elsewhere.
    """
    cluster = config.cluster
    for key in ("actor", "critic", "reference", "reward"):
        ranks, nodes = getattr(cluster, f"{key}_ranks"), getattr(cluster, f"{key}_nodes")
        if ranks not in (None, 1, world) or nodes is not None:
            raise UserError(
                f"every model is on all {world} ranks of torchrun",
                where=f"cluster.{key}_ranks" if nodes is None else f"cluster.{key}_nodes",
                fix="leave it out, or start the run without torchrun: Ray then places it",
            )
    if config.rollout.async_steps:
        raise UserError(
            "models and engines take turns on the ranks of torchrun: nothing is sampled ahead",
            where="rollout.async_steps",
            fix="leave it out, or start the run without torchrun: Ray then keeps engines apart",
        )
    reference = None if cluster.reference_ranks is None else world
    cluster = replace(
        cluster,
        actor_ranks=world,
        critic_ranks=world,
        reference_ranks=reference,
        reward_ranks=world,
        colocate=(ALL,),
    )
    return replace(config, cluster=cluster, rollout=replace(config.rollout, placement="colocated"))


@contextmanager
def torchrun() -> Iterator["LaunchedProcesses | None"]:
    """This process among those that torchrun started.

    Yields:
        On rank 0 the processes that it drives; on the others None, when the run is over.
    """
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    place = os.environ.get("GROUP_RANK", "0"), _device()
    if rank:
        serve_host(Meeting(**json.loads(store.get("megarlhf/driver"))), rank, *place)
        yield None
        return
    key = secrets.token_bytes(32)
    host = socket.gethostbyname(os.environ["MASTER_ADDR"])
    with Listener((host, 0), backlog=max(16, 8 * world), authkey=key) as listener:
        meeting = Meeting(host, listener.address[1], key.hex())
        store.set("megarlhf/driver", json.dumps(asdict(meeting)))
        with Keepers(listener, meeting, world, *place) as keepers:
            yield LaunchedProcesses(keepers)
            keepers.finish()


class LaunchedProcesses:
    """See `Processes`; the driver's.

    Args:
        keepers: All ranks of torchrun.
    """

    placement: Placement

    def __init__(self, keepers: Keepers) -> None:
        import torch

        self.on_gpu = torch.cuda.is_available()
        self._keepers = keepers
        self.world = keepers.world

    @contextmanager
    def open(self, placement: Placement) -> Iterator["LaunchedProcesses"]:
        """See `Opener`. SIGTERM is as Ctrl-C until a run says otherwise."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.placement = placement
        try:
            with explained():
                if self.on_gpu:
                    placement.devices_of_engine(0, self.world)  # they fit
                self._keepers.wait(placement.start_timeout_s)
                yield self
        finally:
            self._keepers.end_processes()
            signal.signal(signal.SIGTERM, before)

    def rank(self, role: str, rank: int, recipe: Recipe) -> Handle:
        """See `Processes.rank`."""
        return self._start([rank], recipe, f"{recipe.kind.__name__}-{rank}")

    def engine(self, number: int, recipe: Recipe) -> Handle:
        """See `Processes.engine`."""
        ranks = [number * self.world // self.placement.engines]
        if self.on_gpu:
            ranks = self.placement.devices_of_engine(number, self.world)
            if len({self._keepers.ranks[rank].node for rank in ranks}) > 1:
                raise UserError(
                    f"the {len(ranks)} GPUs of engine {number} are on several nodes",
                    where="rollout.tensor_parallel",
                    fix="make it a divisor of torchrun's processes on a node",
                )
        return self._start(ranks, recipe, f"{recipe.kind.__name__}-{number}")

    def _start(self, ranks: list[int], recipe: Recipe, name: str) -> Handle:
        environment = dict(recipe.environment)
        if self.on_gpu:
            devices = [self._keepers.ranks[rank].device for rank in ranks]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return self._keepers.start(ranks[0], name, replace(recipe, environment=environment))

    def kill(self, handle: Handle) -> None:
        """See `Processes.kill`."""
        self._keepers.kill(handle)

    def node(self, handle: Handle) -> str:
        """See `Processes.node`."""
        return self._keepers.ranks[handle.host].node

    def address(self, handle: Handle) -> str:
        """See `Processes.address`."""
        return self._keepers.ranks[handle.host].address

    def shared(self, value: Any) -> Shared:
        """See `Processes.shared`."""
        return Shared(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))

    def wait(
        self, references: Sequence[futures.Future], count: int, timeout_s: float | None
    ) -> tuple[list[futures.Future], list[futures.Future]]:
        """See `Processes.wait`; at least one, or all."""
        until = futures.ALL_COMPLETED if count == len(references) else futures.FIRST_COMPLETED
        found = futures.wait(references, timeout_s, until).done
        done = [reference for reference in references if reference in found]
        return done, [reference for reference in references if reference not in found]

    def result(self, reference: futures.Future) -> Any:
        """See `Processes.result`."""
        return reference.result()


def _device() -> str:
    """This rank's GPU, as CUDA_VISIBLE_DEVICES names it; any text where there is none."""
    number = os.environ["LOCAL_RANK"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[int(number)] if int(number) < len(visible) and visible != [""] else number
