"""Which ranks share devices, and which must be on one node: a pure plan of a run's processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megarlhf.config.placement_checks import sharing
from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError


@dataclass(frozen=True)
class Role:
    """A model of the run on its ranks.

    Attributes:
        name: Of its own.
        kind: ``actor``, ``critic``, ``reference`` or ``reward``: what the configuration calls it.
        ranks: How many it has.
        tensor: Neighbouring ranks that exchange most, and so share a node.
        nodes: Nodes to spread evenly over; None: as they come.
    """

    name: str
    kind: str
    ranks: int
    tensor: int
    nodes: int | None


@dataclass(frozen=True)
class Gang:
    """Roles on the same devices: rank r of each is on device r.

    Attributes:
        roles: The one with most ranks first: it holds the devices, the others share them.
        unit: Neighbouring devices that must be on one node.
        engines: Whether the engines share the devices, too.
    """

    roles: tuple[Role, ...]
    unit: int
    engines: bool = False

    @property
    def ranks(self) -> int:
        """Devices that it has."""
        return self.roles[0].ranks

    @property
    def bundles(self) -> list[int]:
        """Devices that are on one node, in the order of the ranks."""
        nodes = max((role.nodes or 0 for role in self.roles), default=0)
        size = self.ranks // nodes if nodes else self.unit
        whole, rest = divmod(self.ranks, size)
        return [size] * whole + [rest] * (rest > 0)

    def bundle_of(self, rank: int) -> int:
        """The bundle that device ``rank`` is in."""
        return rank // self.bundles[0]


@dataclass(frozen=True)
class Placement:
    """All processes of a run.

    Attributes:
        gangs: Of its models.
        engines: How many there are.
        engine_ranks: Of each.
        cpus_per_rank: That a rank takes on a machine without GPUs.
        start_timeout_s: The longest to wait for room.
    """

    gangs: tuple[Gang, ...]
    engines: int
    engine_ranks: int
    cpus_per_rank: float
    start_timeout_s: float

    @property
    def cpus(self) -> int:
        """What all take together on a machine without GPUs; engines need their own there."""
        ranks = sum(gang.ranks for gang in self.gangs)
        return math.ceil(ranks * self.cpus_per_rank) + self.engines * self.engine_ranks

    def gang_of(self, role: str) -> Gang:
        """The gang that a role is in."""
        return next(g for g in self.gangs if any(role == one.name for one in g.roles))

    @property
    def host_of_engines(self) -> Gang | None:
        """The gang whose devices the engines share, if they do."""
        return next((gang for gang in self.gangs if gang.engines), None)

    def devices_of_engine(self, number: int, devices: int) -> list[int]:
        """Which of some devices that the engines share an engine runs on, on one node.

        Raises:
            UserError: There are not enough.
        """
        each, need = devices // self.engines, self.engine_ranks
        if each < need:
            raise UserError(
                f"{self.engines} engines of {need} GPUs do not fit on the trainer's {devices}, "
                "which they share",
                where="rollout.placement",
                fix="use fewer engines, a smaller rollout.tensor_parallel, more "
                "cluster.actor_ranks, or rollout.placement=separate",
            )
        first = number * (each // need * need)
        return list(range(first, first + need))


def placement_of(config: RLConfig, models: Sequence[str]) -> Placement:
    """The plan that a configuration asks for.

    Args:
        config: The run's configuration.
        models: Which kinds of models it has.
    """
    cluster, rollout = config.cluster, config.rollout
    roles = [role for role in roles_of(config) if role.kind in models]
    colocated = rollout.placement == "colocated"
    gangs = []
    for kinds in sharing(cluster.colocate):
        members = [role for role in roles if role.kind in kinds]
        roles = [role for role in roles if role not in members]
        if members:
            gangs.append(_gang(members, rollout.tensor_parallel if colocated else None))
    gangs += [_gang([role], rollout.tensor_parallel if colocated else None) for role in roles]
    return Placement(
        gangs=tuple(gangs),
        engines=rollout.engines,
        engine_ranks=rollout.tensor_parallel,
        cpus_per_rank=cluster.cpus_per_rank,
        start_timeout_s=cluster.start_timeout_s,
    )


def roles_of(config: RLConfig) -> list[Role]:
    """Every model that the configuration describes, whether or not the run has it."""
    cluster = config.cluster
    actor, critic = config.model.parallel, config.critic.parallel
    reference, reward = config.reference.parallel or actor, config.reward.parallel
    ranks = cluster.actor_ranks
    return [
        Role("actor", "actor", ranks, actor.tensor, cluster.actor_nodes),
        Role(
            *("critic", "critic", cluster.critic_ranks or ranks),
            *(critic.tensor, cluster.critic_nodes),
        ),
        Role(
            *("reference", "reference", cluster.reference_ranks or ranks),
            *(reference.tensor, cluster.reference_nodes),
        ),
        *(
            Role(name, "reward", cluster.reward_ranks, reward.tensor, cluster.reward_nodes)
            for name in map(reward_role, models_by_name(config.reward.models))
        ),
    ]


def reward_role(name: str) -> str:
    """The role of a reward model of that name."""
    return f"reward {name}"


def _gang(roles: list[Role], engine_ranks: int | None) -> Gang:
    """Engines go where the actor is."""
    roles = sorted(roles, key=lambda role: -role.ranks)
    with_actor = any(role.kind == "actor" for role in roles)
    sizes = [role.tensor for role in roles]
    if with_actor and engine_ranks is not None:
        return Gang(tuple(roles), math.lcm(*sizes, engine_ranks), engines=True)
    return Gang(tuple(roles), math.lcm(*sizes))
