"""What the ranks run in the planner's tests."""

import io
import logging
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist

from megarlhf.algo.distillation_loss import DistillationLoss
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import (
    DistillationLossConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
)
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology
from megarlhf.plan import search, tool
from megarlhf.plan.estimate import no_stream
from megarlhf.plan.fake_run import measure, run_rank
from megarlhf.plan.hardware import Calibration
from megarlhf.plan.layers import run_stage
from megarlhf.plan.making import make_plan
from megarlhf.plan.roles import SCORE, TRAIN, Role, Work, before_training
from megarlhf.plan.subject import read_subject


def role_of(
    path,
    parallel,
    world,
    *,
    tokens=64,
    dtype="bfloat16",
    recompute="none",
    score=True,
    lora=None,
    averaging=None,
    reference=False,
    samples=1,
    distils=None,
    **adam,
):
    topology = Topology.of(ParallelConfig(**parallel), world)
    config = ModelConfig(
        path=str(path), dtype=dtype, recompute=recompute, parallel=ParallelConfig(**parallel)
    )
    trained = None if samples == 1 else tokens // 2
    work = Work(sequences=8 * topology.dp, tokens=tokens, trained=trained, samples=samples)
    role = Role(
        name="model",
        ranks="model",
        spec=ModelSpec.read(path),
        config=config,
        topology=topology,
        micro_batch_tokens=tokens if tokens > 1000 else 2 * tokens,
        optimizer=OptimizerConfig(**adam),
        loss=NegativeLogLikelihood(),
        work={SCORE: work, TRAIN: work} if score else {TRAIN: work},
        lora=LoraConfig(**(lora or {})),
        averaging=averaging,
        share=samples > 1,
    )
    if distils is not None:
        return DISTILLATION[distils](role, work)
    return before_training(role, "reference", work) if reference else role


def teacher_of(role, work):
    """It teaches one that is cut over all ranks."""
    cut = Topology(role.topology.world, tp=role.topology.world)
    loss = DistillationLoss(DistillationLossConfig(), None)
    student = replace(role, topology=cut, loss=loss, work={TRAIN: work})
    return replace(before_training(role, "teacher", work), student=student)


def student_of(role, work):
    """Of a teacher's best tokens."""
    loss = DistillationLoss(DistillationLossConfig(top_k=4), None)
    return replace(role, loss=loss, work={TRAIN: work})


DISTILLATION = {"teacher": teacher_of, "student": student_of}


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
                for each in sorted({0, size - 1})
            ]
            for path, parallel, size, settings in cases
        ]


def deep_stages(rank, world, cases):
    """Stages extrapolated from few layers, and run with all of them."""
    with _without_world():
        roles = [
            (role_of(path, parallel, size, recompute=recompute, score=False), stage)
            for path, parallel, size, stage, recompute in cases
        ]
        return [
            [run_stage(role, stage, exact=exact) for exact in (False, True)]
            for role, stage in roles
        ]


def stages(rank, world, cases, tokens):
    """Of each case the first rank of a stage."""
    with _without_world():
        return [
            run_stage(role_of(path, parallel, size, tokens=tokens, score=False), stage, exact=False)
            for path, parallel, size, stage in cases
        ]


def plan(rank, world, file):
    """A configuration's verdict, and of each place its peak and its memory.

    Of each pipeline only the first stage is run, which keeps most in flight; the others are as it is.
    """
    known = {}

    def run(role, stage, **options):
        if role.name not in known:
            known[role.name] = run_stage(role, 0, **options)
        return known[role.name]

    with _without_world():
        found = make_plan(read_subject(Path(file), (), calibration=Calibration()), run, no_stream)
    return found.verdict, [(place.name, place.peak, place.memory) for place in found.places]


def command(rank, world, settings, seconds=None):
    """The command's exit status and what it prints, or the error."""
    printed = io.StringIO()
    limit = patch.object(search, "SECONDS", seconds or search.SECONDS)
    with _without_world(), redirect_stdout(printed), limit:
        try:
            return tool.run_plan(settings), printed.getvalue()
        except UserError as error:
            return error.status, str(error)
        finally:
            logging.disable(logging.NOTSET)
