"""Real Ray with two nodes whose GPUs exist on paper; the processes say where they are."""

import os
from dataclasses import replace

import pytest
import ray

from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.processes import Recipe
from megarlhf.cluster.ray_cluster import RayProcesses, ray_cluster
from megarlhf.config.schema import (
    ClusterConfig,
    ModelConfig,
    ParallelConfig,
    RLConfig,
    RolloutConfig,
)
from megarlhf.errors import UserError

CLUSTER = ClusterConfig(
    actor_ranks=4, critic_ranks=2, actor_nodes=2, colocate=("actor+critic",), start_timeout_s=60
)
CONFIG = RLConfig(
    model=ModelConfig(parallel=ParallelConfig(tensor=2)),
    rollout=RolloutConfig(engines=2, tensor_parallel=2, placement="colocated"),
    cluster=CLUSTER,
)


# Loopback, but not 127.0.0.1, which Ray takes for the address of another interface.
LOOPBACK = "127.0.0.2"


class Place:
    """Stands where a model or an engine would."""

    def __init__(self, *_):
        pass

    def devices(self):
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")


@pytest.fixture(scope="module")
def two_nodes():
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 1, "num_gpus": 4, "node_ip_address": LOOPBACK}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    cluster.add_node(**nodes)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = cluster.address
    yield
    cluster.shutdown()
    os.environ.pop("RAY_ADDRESS")
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


def where(processes: RayProcesses, handles) -> list[tuple[str, list[str]]]:
    found = [processes.result(handle.devices.remote()) for handle in handles]
    return [(processes.node(handle), gpus) for handle, gpus in zip(handles, found, strict=True)]


def test_ranks_and_engines_are_where_they_should(two_nodes):
    with ray_cluster(placement_of(CONFIG, ["actor", "critic"])) as processes:
        assert processes.on_gpu
        groups = ModelGroups(CONFIG, processes)
        actor, critic = (groups.group(Place, role) for role in ("actor", "critic"))
        engines = [processes.engine(number, Recipe(Place, ())) for number in range(2)]
        actors = where(processes, actor.members)
        nodes = [node for node, _ in actors]
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
        assert all(len(gpus) == 1 for _, gpus in actors)
        assert len({(node, *gpus) for node, gpus in actors}) == 4
        assert where(processes, critic.members) == actors[:2]
        for number, (node, gpus) in enumerate(where(processes, engines)):
            mine = actors[2 * number : 2 * number + 2]
            assert [(node, [gpu]) for gpu in gpus] == mine
        assert actor.residents is critic.residents is not None
        assert actor.members and ray.available_resources()["GPU"] == 4


def test_where_there_is_no_room_it_is_said(two_nodes):
    cluster = replace(CLUSTER, actor_nodes=None, start_timeout_s=1)
    parallel = ParallelConfig(tensor=8)  # on one node
    config = replace(
        CONFIG,
        model=replace(CONFIG.model, parallel=parallel),
        cluster=replace(cluster, actor_ranks=8, critic_ranks=8),
        rollout=RolloutConfig(),
    )
    said = "no room for the ranks of actor and critic: 8 GPUs"
    placement = placement_of(config, ["actor", "critic"])
    with pytest.raises(UserError, match=said), ray_cluster(placement):
        pass
