"""Ray's placement groups: devices are reserved all at once, neighbouring ranks on one node."""

import time

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from megarlhf.cluster.placement import Gang, Placement
from megarlhf.errors import UserError


class Bundles:
    """A placement group for each gang; they go when the run's driver does.

    Args:
        placement: The gangs.
        on_gpu: Whether a device is a GPU, or some CPUs.

    Raises:
        UserError: The cluster has no room for them.
    """

    def __init__(self, placement: Placement, *, on_gpu: bool) -> None:
        name, each = ("GPU", 1.0) if on_gpu else ("CPU", placement.cpus_per_rank)
        self._groups: dict[Gang, PlacementGroup] = {}
        for gang in placement.gangs:
            spread = any(role.nodes for role in gang.roles)
            self._groups[gang] = placement_group(
                [{name: size * each} for size in gang.bundles],
                strategy="STRICT_SPREAD" if spread else "PACK",
            )
        ends = time.monotonic() + placement.start_timeout_s
        for gang, group in self._groups.items():
            if not group.wait(max(0.0, ends - time.monotonic())):
                raise _no_room(gang, name, each)

    def strategy(self, gang: Gang, device: int) -> PlacementGroupSchedulingStrategy:
        """Where a process goes that is on a device of a gang."""
        return PlacementGroupSchedulingStrategy(
            self._groups[gang], placement_group_bundle_index=gang.bundle_of(device)
        )


def _no_room(gang: Gang, name: str, each: float) -> UserError:
    roles = " and ".join(role.name for role in gang.roles)
    bundles = " + ".join(f"{size * each:g}" for size in gang.bundles)
    nodes = [node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]]
    have = " + ".join(f"{count:g}" for count in nodes)
    return UserError(
        f"no room for the ranks of {roles}: {bundles} {name}s, each number on one node; the nodes "
        f"have {have}, some of them in use",
        where="cluster",
        fix="ask for fewer ranks or a smaller tensor size, let roles share (cluster.colocate), wait "
        "for the cluster, or raise cluster.start_timeout_s",
    )
