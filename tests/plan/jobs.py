"""What the ranks run in the planner's tests."""

from contextlib import contextmanager

import torch.distributed as dist

from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import ModelConfig, OptimizerConfig, ParallelConfig
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology
from megarlhf.plan.fake_run import measure, run_rank
from megarlhf.plan.layers import run_stage
from megarlhf.plan.roles import SCORE, TRAIN, Role, Work


def role_of(path, parallel, world, *, tokens=64, dtype="bfloat16", recompute="none", score=True):
    topology = Topology.of(ParallelConfig(**parallel), world)
    config = ModelConfig(
        path=str(path), dtype=dtype, recompute=recompute, parallel=ParallelConfig(**parallel)
    )
    work = Work(sequences=8 * topology.dp, tokens=tokens)
    return Role(
        name="model",
        ranks="model",
        spec=ModelSpec.read(path),
        config=config,
        topology=topology,
        micro_batch_tokens=2 * tokens,
        optimizer=OptimizerConfig(),
        loss=NegativeLogLikelihood(),
        work={SCORE: work, TRAIN: work} if score else {TRAIN: work},
    )


def real_run(rank, world, path, parallel, settings):
    """On real gloo ranks, with real tensors."""
    role = role_of(path, parallel, world, **settings)
    return measure(role, rank, make_groups(role.topology, seed=1), filled_for=0)


@contextmanager
def _without_world():
    """The pool's process group goes, and one of this rank alone is there again afterwards."""
    dist.destroy_process_group()
    try:
        yield
    finally:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def fake_runs(rank, world, cases):
    """Each case's ranks, one after the other, in this process."""
    with _without_world():
        return [
            [
                run_rank(role_of(path, parallel, size, **settings), each, filled_for=0)
                for each in (0, size - 1)
            ]
            for path, parallel, size, settings in cases
        ]


def deep_stage(rank, world, path, parallel, size, stage):
    """A stage extrapolated from few layers, and run with all of them."""
    with _without_world():
        role = role_of(path, parallel, size, recompute="full", score=False)
        return [run_stage(role, stage, exact=exact) for exact in (False, True)]
