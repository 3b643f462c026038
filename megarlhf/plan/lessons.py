"""Distillation's two sides, each run by itself: the teacher's pass, and what the student keeps of it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from megarlhf.algo.distillation_loss import DistillationLoss
from megarlhf.data.records import Batch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.shares import Shares
from megarlhf.engine.teacher import Lesson, Teacher
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.plan.batches import dealt, step_of
from megarlhf.plan.meter import Meter
from megarlhf.plan.roles import SCORE, TRAIN, Role
from megarlhf.plan.usage import LESSONS


@dataclass(frozen=True)
class _Student:
    spec: ModelSpec
    topology: Topology
    passes: Shares


class _OnlyLayout:
    """In place of `SecondLayout`: the teacher is alone here, and its layout the first one."""

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()


def teach(role: Role, engine: ModelEngine) -> int:
    """Let the teacher say what the student needs in a step; returns its micro-batches on this rank.

    The rank's micro-batches are all full: of a step that does not fill them, as of one that does.
    """
    student = role.student
    assert student is not None and isinstance(student.loss, DistillationLoss)
    found = dealt(role, SCORE)
    count = found.micro_batches * len(found.full) * role.topology.dp
    sequences, groups = step_of(replace(role.work[SCORE], sequences=count))
    known = _Student(
        student.spec, student.topology, Shares(student.topology, student.micro_batch_tokens)
    )
    teacher = Teacher(engine, _OnlyLayout(), known, student.loss.config)
    teacher.lesson(Batch(sequences, groups))
    return found.micro_batches


def taught(
    role: Role,
    engine: ModelEngine,
    meter: Meter,
    sequences: list[TokenSequence],
    groups: list[tuple[int, ...]],
) -> TokenLoss:
    """The student's loss, with distributions of as many tokens as a whole step has."""
    loss = role.loss
    if not isinstance(loss, DistillationLoss):
        assert loss is not None
        return loss
    if not engine.passes.is_last_stage:
        return replace(loss, from_logits=Lesson(loss.config, role.spec.vocab_size, {}, None))
    topology, config = role.topology, loss.config
    width = -(-role.spec.vocab_size // topology.tp)
    columns = min(width, role.spec.vocab_size - width * engine.place.tp)
    own = engine.passes.shares(sequences, groups)[engine.place.dp]
    run = [index for pack in own for index in pack]
    length = dealt(role, TRAIN).full_tokens // len(dealt(role, TRAIN).full) // topology.cp
    others = dealt(role, TRAIN).tokens // topology.cp - length * len(run)

    def rows(numbers: int, dtype: torch.dtype) -> dict[int, torch.Tensor]:
        found = {index: torch.zeros(length, numbers, dtype=dtype) for index in run}
        rest = torch.zeros(max(0, others), numbers, dtype=dtype)
        meter.name(LESSONS, [*found.values(), rest])
        return found | {-1: rest}  # -1: of no sequence here

    kept = columns if config.top_k is None else config.top_k
    ids = None if config.top_k is None else rows(config.top_k, torch.int64)
    return replace(
        loss,
        from_logits=Lesson(config, role.spec.vocab_size, rows(kept, torch.float32), ids),
    )
