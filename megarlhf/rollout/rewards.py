"""Score responses with the user's own Python function."""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megarlhf.data.records import Sample
from megarlhf.errors import UserError

RewardFunction = Callable[[list[str], list[str], list[Any]], Any]


def load_reward_function(path: str) -> RewardFunction:
    """Import ``reward_func`` from a Python file.

    Raises:
        UserError: The file does not run, or defines no such function of three arguments.
    """
    file = Path(path)
    spec = importlib.util.spec_from_file_location("megarlhf_user_reward", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UserError("no such Python file", where=path, fix="set reward.function to a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the reward file does not run: {error!r}", where=path) from error
    function = getattr(module, "reward_func", None)
    if not callable(function):
        raise UserError(
            "the file defines no reward_func",
            where=path,
            fix="define reward_func(queries, prompts, labels) -> list of floats",
        )
    try:
        inspect.signature(function).bind([], [], [])
    except TypeError as error:
        raise UserError(
            f"reward_func cannot be called with (queries, prompts, labels): {error}", where=path
        ) from None
    return function


def score(function: RewardFunction, samples: Sequence[Sample], where: str) -> None:
    """Set every sample's ``reward``.

    Args:
        function: ``reward_func(queries, prompts, labels)``: lists of equal length, a query being
            prompt and response as text; returns as many numbers (a list or a tensor).
        samples: What to score.
        where: The reward's file, for messages.

    Raises:
        UserError: It raises, returns another number of values, or one that is not finite; the
            prompt is shown.
    """
    queries = [sample.prompt.text + sample.text for sample in samples]
    prompts = [sample.prompt.text for sample in samples]
    labels = [sample.prompt.label for sample in samples]
    try:
        values = function(queries, prompts, labels)
    except Exception as error:
        culprit = _first_failing(function, queries, prompts, labels)
        raise UserError(
            f"reward_func raised {error!r} {_shown(samples[culprit])}",
            where=where,
            fix="make it return a number for every response",
        ) from error
    numbers = _as_numbers(values, len(samples), where, samples)
    for sample, number in zip(samples, numbers, strict=True):
        if not math.isfinite(number):
            raise UserError(f"reward_func returned {number} {_shown(sample)}", where=where)
        sample.reward = number


def _as_numbers(values: Any, count: int, where: str, samples: Sequence[Sample]) -> list[float]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple) or len(values) != count:
        size = f"{len(values)} values" if isinstance(values, list | tuple) else f"{values!r:.80}"
        raise UserError(
            f"reward_func returned {size} for {count} responses {_shown(samples[0])}",
            where=where,
            fix="return a list (or 1-d tensor) with one number a response",
        )
    numbers = []
    for value, sample in zip(values, samples, strict=True):
        try:
            numbers.append(float(value))
        except Exception:  # of whatever type the value is: TypeError, OverflowError, ...
            raise UserError(
                f"reward_func returned {value!r:.80}, not a number, {_shown(sample)}", where=where
            ) from None
    return numbers


def _first_failing(
    function: RewardFunction, queries: list[str], prompts: list[str], labels: list[Any]
) -> int:
    """The first response that fails by itself; 0 when none does."""
    for index in range(len(queries)):
        try:
            function(
                queries[index : index + 1], prompts[index : index + 1], labels[index : index + 1]
            )
        except Exception:
            return index
    return 0


def _shown(sample: Sample) -> str:
    return f"for the prompt {sample.prompt.text!r:.300} and the response {sample.text!r:.300}"
