"""Rules about where models run: ``cluster.*``."""

from collections.abc import Sequence

from megarlhf.config.numbers import any_of, nearest_divisors
from megarlhf.config.schema import ClusterConfig, ParallelConfig, RLConfig
from megarlhf.errors import UserError

KINDS = ("actor", "critic", "reference", "reward")  # of models
ALL = "all"


def sharing(colocate: Sequence[str]) -> list[tuple[str, ...]]:
    """Kinds of models that share devices, from ``cluster.colocate``."""
    return [KINDS if text == ALL else tuple(text.split("+")) for text in colocate]


def check_placement(config: RLConfig) -> None:
    """Models can share devices and be spread over nodes as they are told.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    cluster = config.cluster
    _check_colocate(cluster)
    if cluster.reference_ranks is None and config.reference.parallel != ParallelConfig():
        raise UserError(
            "the reference has a layout of its own only on processes of its own",
            where="reference.parallel",
            fix="set cluster.reference_ranks, or leave reference.parallel out",
        )
    layouts = {
        "actor": (cluster.actor_ranks, config.model.parallel),
        "critic": (cluster.critic_ranks or cluster.actor_ranks, config.critic.parallel),
        "reference": (cluster.reference_ranks, config.reference.parallel),
        "reward": (cluster.reward_ranks, config.reward.parallel),
    }
    for kind, (ranks, parallel) in layouts.items():
        nodes = getattr(cluster, f"{kind}_nodes")
        if nodes is not None:
            _check_nodes(kind, nodes, ranks, parallel)


def _check_colocate(cluster: ClusterConfig) -> None:
    seen: list[str] = []
    for text, kinds in zip(cluster.colocate, sharing(cluster.colocate), strict=True):
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or len(kinds) < 2:
            raise UserError(
                f"not models that can share devices: {text!r}",
                where="cluster.colocate",
                fix=f"write {ALL}, or two or more of {', '.join(KINDS)} with + between them",
            )
        seen += kinds
    if len(set(seen)) < len(seen):
        twice = next(kind for kind in seen if seen.count(kind) > 1)
        raise UserError(
            f"the {twice} is in it twice",
            where="cluster.colocate",
            fix="join the two with +, or leave one out",
        )


def _check_nodes(kind: str, nodes: int, ranks: int | None, parallel: ParallelConfig) -> None:
    where = f"cluster.{kind}_nodes"
    if ranks is None:
        raise UserError(
            "the reference is in the actor's processes",
            where=where,
            fix="set cluster.reference_ranks, or leave it out",
        )
    if ranks % nodes:
        raise UserError(
            f"must divide cluster.{kind}_ranks ({ranks}), got {nodes}",
            where=where,
            fix=f"use {any_of(nearest_divisors(ranks, nodes))}",
        )
    if ranks // nodes % parallel.tensor:
        raise UserError(
            f"{ranks // nodes} ranks on a node cut tensor groups of {parallel.tensor} apart",
            where=where,
            fix="spread over fewer nodes, or use a smaller tensor size",
        )
