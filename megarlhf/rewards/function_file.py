"""The user's Python file with ``reward_func``: load it, call it."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megarlhf.errors import UserError
from megarlhf.rewards.returned import read_returned
from megarlhf.rewards.scorer import Batch, CallFailed, Scores

RewardFunction = Callable[[list[str], list[str], list[Any]], Any]
SUBJECT = "reward_func"


def load_reward_function(path: str) -> RewardFunction:
    """Import ``reward_func`` from a Python file, which may import the modules beside it.

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
        with _importable(file.resolve().parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script's sys.exit() must not end the run unsaid
        raise UserError(f"the reward file does not run: {error!r}", where=path) from error
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


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Modules of a directory come first while the file is imported, and last from then on.

    So its own imports mean its neighbours, and a neighbour that is called like a library does not
    stand in the way of what this process imports later.
    """
    entry = str(directory)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


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
        raise CallFailed(f"{SUBJECT} raised {error!r:.300}{_line_of(error)}") from error
    return read_returned(returned, len(batch), SUBJECT)


def _line_of(error: BaseException) -> str:
    """Where it was raised, below this file."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
