"""The models of an offline run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megarlhf.algo.distillation_loss import DistillationLoss
from megarlhf.algo.preference_loss import PreferenceLoss
from megarlhf.algo.reward_loss import PairwiseRewardLoss, StepRewardLoss
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.algo.unpaired_loss import UnpairedLoss
from megarlhf.config import schema
from megarlhf.config.offline_checks import check_lessons
from megarlhf.config.schema import KDConfig, ModelConfig, OfflineConfig
from megarlhf.engine.loss import TokenLoss
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.context import sequence_sums
from megarlhf.parallel.topology import Topology
from megarlhf.plan.roles import SCORE, TRAIN, Role, ShapeOf, Work, before_training


def roles_of_offline(config: OfflineConfig, world: int, shape_of: ShapeOf) -> list[Role]:
    """The model that is trained and its reference; see `roles_of`."""
    loss, fields, values = _offline_loss(config)
    in_a_row = config.data.sequences_per_row
    work = Work(
        config.train.batch_size * in_a_row, config.data.max_tokens, fields, values, in_a_row
    )
    is_scalar = isinstance(config, schema.RMConfig | schema.PRMConfig)
    directory = shape_of(config.model.path)
    model = Role(
        name="model",
        ranks="model",
        spec=ModelSpec.read_scalar(directory) if is_scalar else ModelSpec.read(directory),
        config=config.model,
        topology=Topology.of(config.model.parallel, world),
        micro_batch_tokens=config.train.micro_batch_tokens,
        optimizer=config.optimizer,
        loss=loss,
        work={TRAIN: work},
        lora=config.lora,
    )
    if isinstance(config, schema.KDConfig):
        return [model, _teacher(config, model, world, shape_of)]
    if isinstance(config, schema.KTOConfig):
        return _with_reference_point(model, work, config.loss.kl)
    online = isinstance(config, schema.DPOConfig) and config.loss.reference == "online"
    return [model, before_training(model, "reference", work)] if online else [model]


def _teacher(config: KDConfig, student: Role, world: int, shape_of: ShapeOf) -> Role:
    """On the student's ranks, in its own layout."""
    teacher, spec = config.teacher, ModelSpec.read(shape_of(config.teacher.path))
    check_lessons(config, student.spec.vocab_size, spec.vocab_size, world)
    return Role(
        name="teacher",
        ranks=student.ranks,
        spec=spec,
        config=ModelConfig(teacher.path, teacher.dtype, parallel=teacher.parallel),
        topology=Topology.of(teacher.parallel, world),
        micro_batch_tokens=student.micro_batch_tokens,
        work={SCORE: student.work[TRAIN]},
        student=student,
    )


def _with_reference_point(model: Role, work: Work, estimate: str) -> list[Role]:
    """KTO: see `WithReferencePoint`, which asks both models of the same or of other answers."""
    reference = before_training(model, "reference", work)
    plain = reference.work[SCORE]
    if estimate != "none":
        model.work[SCORE] = plain
    if estimate == "mismatched":
        reference.work[SCORE] = replace(plain, times=2)
    return [model, reference]


def _offline_loss(config: Any) -> tuple[TokenLoss, tuple[str, ...], tuple[str, ...]]:
    """The loss, the fields and the numbers that it reads."""
    reference = ("reference_logprobs",)
    makers: dict[type, Callable[[], tuple]] = {
        schema.SFTConfig: lambda: (NegativeLogLikelihood(), (), ()),
        schema.RMConfig: lambda: (
            PairwiseRewardLoss(sequence_sums, config.loss.center_coef),
            (),
            ("margin",) if config.data.margin_key else (),
        ),
        schema.PRMConfig: lambda: (StepRewardLoss(), ("labels",), ()),
        schema.DPOConfig: lambda: (
            PreferenceLoss(config.loss, sequence_sums),
            () if config.loss.reference == "none" else reference,
            (),
        ),
        schema.KTOConfig: lambda: (
            UnpairedLoss(config.loss, sequence_sums),
            reference,
            ("desirable", "kl"),
        ),
        schema.KDConfig: lambda: (DistillationLoss(config.loss, None), (), ()),
    }
    return makers[type(config)]()
