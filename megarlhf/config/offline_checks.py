"""Rules about the losses, batches and evaluations of the commands under torchrun."""

from megarlhf.config.numbers import any_of
from megarlhf.config.schema import DPOConfig, KTOConfig, OfflineConfig
from megarlhf.errors import UserError


def check_offline_batch(config: OfflineConfig, world_size: int) -> None:
    """Every data-parallel rank gets as many micro-batches, however long the rows are."""
    parallel = config.model.parallel
    replicas = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
    stages = parallel.pipeline if parallel.virtual_pipeline > 1 else 1
    rows, stride = config.train.batch_size, replicas * stages
    if rows % stride:
        cause = f"the {replicas} data-parallel ranks"
        if stages > 1:
            cause += f" times the {stages} pipeline stages"
        below = rows // stride * stride
        choices = [number for number in (below, below + stride) if number]
        raise UserError(
            f"must be a multiple of {stride}, {cause}, got {rows}",
            where="train.batch_size",
            fix=f"use {any_of(choices)}",
        )


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
