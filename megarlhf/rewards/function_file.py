"""The user's Python file with ``reward_func``: load it, call it."""

import inspect
from collections.abc import Callable
from typing import Any

from megarlhf.errors import UserError
from megarlhf.rewards.returned import read_returned
from megarlhf.rewards.scorer import Batch, CallFailed, Scores
from megarlhf.rewards.user_module import line_of, load_module

RewardFunction = Callable[[list[str], list[str], list[Any]], Any]
SUBJECT = "reward_func"


def load_reward_function(path: str) -> RewardFunction:
    """Import ``reward_func`` from a Python file, which may import the modules beside it.

    Raises:
        UserError: The file does not run, or defines no such function of three arguments.
    """
    module = load_module(
        path, "megarlhf_user_reward", setting="reward.function", subject="reward file"
    )
    function = getattr(module, SUBJECT, None)
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


async def call_reward_function(function: RewardFunction, batch: Batch) -> Scores:
    """Call ``reward_func``, plain or ``async``, for a batch.

    Raises:
        CallFailed: It raised, or returned something else than a number for every response.
    """
    try:
        # It gets lists of its own: what it does to them is not seen by the next call.
        returned = function(list(batch.queries), list(batch.prompts), list(batch.labels))
        if inspect.isawaitable(returned):
            returned = await returned
    except (Exception, SystemExit) as error:
        raise CallFailed(f"{SUBJECT} raised {error!r:.300}{line_of(error)}") from error
    return read_returned(returned, len(batch), SUBJECT)
