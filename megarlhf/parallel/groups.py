"""Process groups of a topology, made once a process."""

import datetime
import os
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from megarlhf.parallel import device, host_memory, interface
from megarlhf.parallel.stores import PATIENCE_S
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection


def join_world(
    rank: int,
    world: int,
    store: dist.Store,
    address: str = "127.0.0.1",
    timeout_s: float = PATIENCE_S,
) -> None:
    """Join the trainer's default process group.

    Args:
        rank: This process's rank.
        world: Number of ranks.
        store: Where the ranks find each other.
        address: Host of rank 0, which says by which network interface the others are reached.
        timeout_s: The longest a collective may wait, seconds.
    """
    if torch.cuda.is_available():  # Ray shows each actor only its own
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    else:
        host_memory.keep_freed()
    device.prepare()
    interface.use_route_to(address)
    dist.init_process_group(
        device.backend(),
        store=store,
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout_s),
    )


def make_groups(topology: Topology, seed: int) -> "ProcessGroupCollection":
    """Create Megatron's process groups for a topology and seed its random number generators.

    Call on every rank of the default process group.
    """
    device.prepare()
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=topology.tp,
        pipeline_model_parallel_size=topology.pp,
        virtual_pipeline_model_parallel_size=topology.vpp if topology.vpp > 1 else None,
        context_parallel_size=topology.cp,
        expert_model_parallel_size=topology.ep,
        create_gloo_process_groups=False,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return ProcessGroupCollection.use_mpu_process_groups()
