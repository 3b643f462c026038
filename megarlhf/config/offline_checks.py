"""Rules about the losses and evaluations of the commands under torchrun."""

from megarlhf.config.batch_checks import dealt_in
from megarlhf.config.schema import DPOConfig, KDConfig, KTOConfig, OfflineConfig
from megarlhf.errors import UserError


def check_evaluation(config: OfflineConfig) -> None:
    """Evaluations need rows."""
    if config.train.eval_every and config.data.eval is None and config.data.eval_split is None:
        raise UserError(
            "there are no rows to evaluate on",
            where="train.eval_every",
            fix="set data.eval (or data.eval_split), or train.eval_every=0",
        )


def check_loss(config: OfflineConfig) -> None:
    """The settings of a loss fit together."""
    if isinstance(config, DPOConfig):
        if config.loss.kind != "sigmoid" and config.loss.label_smoothing:
            raise UserError(
                f"is for loss.kind=sigmoid, not {config.loss.kind}",
                where="loss.label_smoothing",
                fix="set it to 0, or loss.kind=sigmoid",
            )
        if config.data.margin_key is not None:
            raise UserError(
                "is for reward models: no loss of dpo reads a margin",
                where="data.margin_key",
                fix="leave it out",
            )
    if isinstance(config, KTOConfig) and config.loss.kl != "none" and config.train.batch_size < 2:
        raise UserError(
            f"must be at least 2: the KL is estimated from other rows, got {config.train.batch_size}",
            where="train.batch_size",
            fix="raise it, or set loss.kl=none",
        )


def check_lessons(config: KDConfig, student: int, teacher: int, world_size: int) -> None:
    """A batch and a teacher's distributions go with the student.

    Args:
        config: The run's.
        student: Embeddings of the student,
        teacher: and of the teacher.
        world_size: Ranks.

    Raises:
        UserError: They do not.
    """
    stride, rows = dealt_in(config.model.parallel, world_size), config.train.batch_size
    if rows % stride:
        raise UserError(
            f"must be a multiple of {stride}, for the teacher to know who needs what of its "
            f"distributions, got {rows}",
            where="train.batch_size",
            fix=f"use {-(-rows // stride) * stride}",
        )
    if teacher < student:
        raise UserError(
            f"the teacher has {teacher} embeddings, the student {student}",
            where="teacher.path",
            fix="choose a teacher with at least as many",
        )
    if (config.loss.top_k or 0) > student:
        raise UserError(
            f"must be at most the vocabulary's size ({student}), got {config.loss.top_k}",
            where="loss.top_k",
            fix="lower it, or leave it out to use the whole vocabulary",
        )
