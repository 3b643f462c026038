"""Which ranks share devices and nodes; nothing is started."""

from dataclasses import replace

import pytest

from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.torchrun_cluster import everywhere
from megarlhf.config.placement_checks import check_placement
from megarlhf.config.schema import (
    ClusterConfig,
    CriticConfig,
    ModelConfig,
    ParallelConfig,
    ReferenceConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
)
from megarlhf.errors import UserError

MODELS = ("actor", "critic", "reference", "reward")


def a_run(cluster: ClusterConfig, *, engine_ranks: int = 1, placement="separate") -> RLConfig:
    """Actor TP4, critic TP2, reference TP8, reward models of one rank."""
    return RLConfig(
        model=ModelConfig(parallel=ParallelConfig(tensor=4)),
        critic=CriticConfig(parallel=ParallelConfig(tensor=2)),
        reference=ReferenceConfig(ParallelConfig(tensor=8)),
        reward=RewardConfig(models=("helpful=a", "harmless=b")),
        rollout=RolloutConfig(engines=2, tensor_parallel=engine_ranks, placement=placement),
        cluster=cluster,
    )


RANKS = ClusterConfig(actor_ranks=16, critic_ranks=6, reference_ranks=8, reward_ranks=4)


def bundles(config: RLConfig, models=MODELS) -> dict[str, list[int]]:
    found = placement_of(config, models).gangs
    return {" ".join(role.name for role in gang.roles): gang.bundles for gang in found}


def test_each_model_has_devices_of_its_own_and_tensor_groups_stay_on_a_node():
    assert bundles(a_run(RANKS)) == {
        "actor": [4, 4, 4, 4],
        "critic": [2, 2, 2],
        "reference": [8],
        "reward helpful": [1, 1, 1, 1],
        "reward harmless": [1, 1, 1, 1],
    }
    assert placement_of(a_run(RANKS), MODELS).cpus == 16 + 6 + 8 + 4 + 4 + 2


def test_only_models_that_the_run_has_are_placed():
    assert list(bundles(a_run(RANKS), ["actor"])) == ["actor"]
    assert list(bundles(a_run(RANKS), ["reward"])) == ["reward helpful", "reward harmless"]


def test_ranks_are_spread_evenly_over_nodes():
    nodes = replace(RANKS, actor_nodes=2, critic_nodes=3, reward_nodes=1)
    found = bundles(a_run(nodes))
    assert found["actor"] == [8, 8]
    assert found["critic"] == [2, 2, 2]
    assert found["reward helpful"] == [4]
    actor = placement_of(a_run(nodes), MODELS).gang_of("actor")
    assert [actor.bundle_of(rank) for rank in range(16)] == [0] * 8 + [1] * 8


def test_models_share_devices():
    config = a_run(replace(RANKS, colocate=("critic+reward", "actor+reference")))
    assert bundles(config) == {
        "critic reward helpful reward harmless": [2, 2, 2],
        "actor reference": [8, 8],
    }
    assert placement_of(config, MODELS).cpus == 16 + 6 + 2
    whole = a_run(replace(RANKS, colocate=("all",)))
    assert bundles(whole) == {"actor reference critic reward helpful reward harmless": [8, 8]}


def test_engines_share_the_actors_devices():
    config = a_run(RANKS, engine_ranks=8, placement="colocated")
    placement = placement_of(config, MODELS)
    assert placement.host_of_engines is placement.gang_of("actor")
    assert placement.gang_of("actor").bundles == [8, 8]  # an engine is on one node
    assert not placement.gang_of("critic").engines
    devices = [placement.devices_of_engine(number, 16) for number in range(2)]
    assert devices == [list(range(8)), list(range(8, 16))]
    small = replace(placement, engines=3, engine_ranks=2)
    assert [small.devices_of_engine(n, 16) for n in range(3)] == [[0, 1], [4, 5], [8, 9]]
    with pytest.raises(UserError) as caught:
        replace(placement, engines=5).devices_of_engine(0, 16)
    assert caught.value.where == "rollout.placement"


@pytest.mark.parametrize(
    ("cluster", "where"),
    [
        ({"colocate": ("critic+rewards",)}, "cluster.colocate"),
        ({"colocate": ("critic",)}, "cluster.colocate"),
        ({"colocate": ("all", "critic+reward")}, "cluster.colocate"),
        ({"actor_nodes": 3}, "cluster.actor_nodes"),
        ({"actor_nodes": 8}, "cluster.actor_nodes"),  # two ranks on a node, tensor groups of four
        ({"reference_ranks": None}, "reference.parallel"),
    ],
)
def test_what_cannot_be_placed_is_refused(cluster, where):
    check_placement(a_run(RANKS))
    with pytest.raises(UserError) as caught:
        check_placement(a_run(replace(RANKS, **cluster)))
    assert caught.value.where == where
    assert caught.value.fix


def test_the_reference_is_on_its_own_ranks_or_not_spread():
    with pytest.raises(UserError) as caught:
        check_placement(RLConfig(cluster=ClusterConfig(reference_nodes=1)))
    assert caught.value.where == "cluster.reference_nodes"


def test_under_torchrun_everything_is_everywhere():
    config = everywhere(a_run(ClusterConfig()), 8)
    found = placement_of(config, ["actor", "critic", "reward"])
    (gang,) = found.gangs
    assert gang.ranks == 8 and gang.engines
    assert config.cluster.reference_ranks is None  # in the actor's processes
    same = replace(RANKS, actor_ranks=8, critic_ranks=8, reward_ranks=8)
    assert everywhere(a_run(same), 8).cluster.reference_ranks == 8
    with pytest.raises(UserError, match="take turns"):
        everywhere(replace(a_run(same), rollout=RolloutConfig(async_steps=1)), 8)
    for cluster in (RANKS, ClusterConfig(actor_ranks=8, actor_nodes=2)):
        with pytest.raises(UserError, match="on all 8 ranks"):
            everywhere(a_run(cluster), 8)
