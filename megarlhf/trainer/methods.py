"""The offline methods: a row for each. Only the planner also asks which method a run is of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megarlhf.algo.distillation_loss import DistillationLoss
from megarlhf.algo.preference_loss import PreferenceLoss
from megarlhf.algo.reward_loss import PairwiseRewardLoss, StepRewardLoss
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.algo.unpaired_loss import UnpairedLoss
from megarlhf.config import schema
from megarlhf.data.batches import batch_of
from megarlhf.data.preference import load_preferences
from megarlhf.data.records import Batch, Example
from megarlhf.data.steps import load_steps
from megarlhf.data.store import StoredRows
from megarlhf.data.supervised import load_supervised
from megarlhf.data.unpaired import load_unpaired
from megarlhf.engine.loss import TokenLoss
from megarlhf.parallel.context import sequence_sums
from megarlhf.trainer.preparation import (
    POINTS,
    Parts,
    Preparation,
    WithReferencePoint,
    logprobs_of,
    reference_of,
    with_loss,
    with_reference,
)
from megarlhf.trainer.teaching import check_teacher, teacher_of


@dataclass(frozen=True)
class Method:
    """An offline method.

    Attributes:
        name: The command.
        load: ``load(config.data, tokenizer, held_out=...)`` reads its rows.
        preparation: Makes what turns the rows of a step into a batch and a loss.
        scalar_head: The model gives a number a token, not tokens.
        judged_by: The metric of held-out rows that the summary names.
        least_rows: Rows that a batch needs.
        check: ``check(config, spec, tokenizer, world)`` refuses what else does not fit.
    """

    name: str
    load: Callable[..., StoredRows]
    preparation: Callable[[Parts], Preparation]
    scalar_head: bool = False
    judged_by: str = "accuracy"
    least_rows: int = 1
    check: Callable[..., None] = lambda *_: None


def _supervised(parts: Parts) -> Preparation:
    return with_loss(NegativeLogLikelihood())


def _reward(parts: Parts) -> Preparation:
    return with_loss(PairwiseRewardLoss(sequence_sums, parts.config.loss.center_coef))


def _steps(parts: Parts) -> Preparation:
    return with_loss(StepRewardLoss())


def _preference(parts: Parts) -> Preparation:
    loss = PreferenceLoss(parts.config.loss, sequence_sums)
    return with_reference(loss, reference_of(parts))


def _unpaired(parts: Parts) -> Preparation:
    config = parts.config
    return WithReferencePoint(
        UnpairedLoss(config.loss, sequence_sums),
        policy=logprobs_of(parts.engine),
        reference=logprobs_of(parts.frozen_copy()),
        estimate=POINTS[config.loss.kl],
        max_tokens=config.data.max_tokens,
    )


def _distillation(parts: Parts) -> Preparation:
    teacher = teacher_of(parts)

    def prepare(examples: Sequence[Example]) -> tuple[Batch, TokenLoss]:
        batch = batch_of(examples)
        return batch, DistillationLoss(parts.config.loss, teacher.lesson(batch))

    return prepare


METHODS: dict[type[Any], Method] = {
    schema.SFTConfig: Method("sft", load_supervised, _supervised, judged_by="loss"),
    schema.RMConfig: Method("rm", load_preferences, _reward, scalar_head=True),
    schema.PRMConfig: Method("prm", load_steps, _steps, scalar_head=True),
    schema.DPOConfig: Method("dpo", load_preferences, _preference),
    schema.KTOConfig: Method("kto", load_unpaired, _unpaired, least_rows=2),
    schema.KDConfig: Method(
        "kd", load_supervised, _distillation, judged_by="loss", check=check_teacher
    ),
}
