"""Rules about what is learned beside the rollouts (ptx), about evaluations and the best checkpoint."""

import re
from collections.abc import Sequence
from typing import Any

from megarlhf.config.batch_checks import check_sequence_length, check_shares
from megarlhf.config.data_checks import check_data, check_data_source
from megarlhf.config.schema import OfflineConfig, RLConfig, TrainConfig
from megarlhf.errors import UserError

_NAMED = re.compile(r"(\w+)=(.+)", re.DOTALL)
ACCURACY = "eval_accuracy"


def evaluation_sets(config: RLConfig) -> dict[str, str]:
    """The held-out prompts by name; those of ``data.eval_prompts`` are called ``""``.

    Raises:
        UserError: One of ``evaluation.sets`` is no NAME=SOURCE, or a name comes twice.
    """
    own = config.data.eval_prompts
    sets = {} if own is None else {"": own}
    for text in config.evaluation.sets:
        match = _NAMED.fullmatch(text)
        if match is None or match[1] in sets:
            raise UserError(
                f"{text!r} has no name" if match is None else f"the name {match[1]!r} comes twice",
                where="evaluation.sets",
                fix="write NAME=json@PATH, each with a name of its own of letters, digits and _",
            )
        sets[match[1]] = match[2]
    return sets


def evaluation_metrics(config: RLConfig) -> list[str]:
    """What an evaluation measures: ``eval_accuracy`` and, of sampled answers, ``eval_pass@k``.

    Those of a named set end with ``_NAME``.
    """
    measured = [ACCURACY]
    if config.evaluation.samples:
        measured += [f"eval_pass@{k}" for k in config.evaluation.pass_at]
    return [of_set(metric, name) for name in evaluation_sets(config) for metric in measured]


def of_set(metric: str, name: str) -> str:
    """A metric of one of the sets."""
    return f"{metric}_{name}" if name else metric


def check_learning(config: RLConfig, model: dict[str, Any]) -> None:
    """Checks the sections ``ptx`` and ``evaluation``, and what the best checkpoint is chosen by.

    Args:
        config: Of the run.
        model: The actor's ``config.json``.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    if config.data.curriculum and not config.data.shuffle:
        raise UserError(
            "chooses the prompts' order, which data.shuffle=false forbids",
            where="data.curriculum",
            fix="leave one of the two out",
        )
    for source in evaluation_sets(config).values():
        check_data_source("evaluation.sets", source)
    evaluation = config.evaluation
    wrong = [k for k in evaluation.pass_at if not 1 <= k <= max(1, evaluation.samples)]
    if wrong:
        raise UserError(
            f"pass@{wrong[0]} needs k from 1 to evaluation.samples ({evaluation.samples})",
            where="evaluation.pass_at",
            fix="raise evaluation.samples, or leave that k out",
        )
    if evaluation.samples and not evaluation_sets(config):
        raise UserError(
            "there are no held-out prompts",
            where="evaluation.samples",
            fix="set data.eval_prompts or evaluation.sets",
        )
    check_best(config.train, evaluation_metrics(config), export=config.output.export_best)
    check_ptx(config, model)


def check_best(
    train: TrainConfig,
    measured: Sequence[str],
    *,
    export: bool = False,
    data: str = "data.eval_prompts",
) -> None:
    """The metric of the best checkpoint is one that evaluations measure.

    Args:
        train: Names it.
        measured: The evaluations' metrics; empty if there are none.
        export: ``output.export_best``.
        data: The setting of held-out data.

    Raises:
        UserError: It is none; names those that are.
    """
    if train.best_metric is None:
        if export:
            raise UserError(
                "nothing says which checkpoint is the best",
                where="output.export_best",
                fix="set train.best_metric, e.g. to eval_accuracy",
            )
        return
    if train.best_metric not in measured:
        raise UserError(
            f"no evaluation measures {train.best_metric!r}"
            + (f", but {', '.join(measured)}" if measured else ": there are no held-out data"),
            where="train.best_metric",
            fix="name one of these" if measured else f"set {data}",
        )


def check_ptx(config: RLConfig, model: dict[str, Any]) -> None:
    """There are rows where they have a weight, and they fit beside the rollouts'."""
    ptx = config.ptx
    if (ptx.coef > 0) != (ptx.data.train is not None):
        missing, given = "ptx.coef", "ptx.data.train"
        if ptx.coef > 0:
            missing, given = given, missing
        raise UserError(f"needs {missing}", where=given, fix=f"set {missing}, or leave {given} out")
    if not ptx.coef:
        return
    if ptx.data.eval is not None or ptx.data.eval_split is not None:
        raise UserError(
            "nothing is evaluated on rows of ptx", where="ptx.data.eval", fix="leave it out"
        )
    try:
        check_data(ptx.data)
    except UserError as error:
        where = error.where if error.where is None else f"ptx.{error.where}"
        raise UserError(error.what, where=where, fix=error.fix) from None
    check_sequence_length({"ptx.data.max_tokens": ptx.data.max_tokens}, model)
    rollout, updates = config.rollout, config.algorithm.updates_per_rollout
    samples = rollout.prompts_per_step * rollout.samples_per_prompt // updates
    longest = config.data.max_prompt_tokens + rollout.max_new_tokens
    check_shares(
        samples + ptx.batch_size,
        "an update's samples + ptx.batch_size",
        max(longest, ptx.data.max_tokens),
        config.model.parallel,
        config.cluster.actor_ranks,
        config.train.micro_batch_tokens,
    )


def check_best_offline(config: OfflineConfig) -> None:
    """As `check_best`; which metrics a method has is seen at its first evaluation."""
    train, evaluates = config.train, config.data.eval or config.data.eval_split
    measured = [train.best_metric or ""] if evaluates else []
    check_best(train, measured, export=config.output.export_best, data="data.eval")
