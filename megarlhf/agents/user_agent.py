"""The user's Python file with a class ``Agent``, or with a function ``run``: load it."""

import inspect
from collections.abc import Callable
from typing import Any

from megarlhf.errors import UserError
from megarlhf.rewards.user_module import load_module

MODULE = "megarlhf_user_agent"


def load_agent(path: str) -> type:
    """Import the class ``Agent`` of a Python file, which may import the modules beside it.

    Raises:
        UserError: The file does not run, or has no such class with ``step(action)``.
    """
    module = load_module(path, MODULE, setting="agent.file", subject="agent's file")
    found = getattr(module, "Agent", None)
    if not inspect.isclass(found) or not callable(getattr(found, "step", None)):
        raise UserError(
            "the file defines no class Agent with a method step",
            where=path,
            fix="define class Agent with step(self, action) -> "
            "{'observation': ..., 'reward': ..., 'done': ...}",
        )
    takes(found, (), "Agent()", path)
    takes(found.step, (None, None), "Agent.step(action)", path)
    if hasattr(found, "reset"):
        takes(found.reset, (None, "", None), "Agent.reset(prompt, label)", path)
    return found


def load_program(path: str) -> Callable[..., Any]:
    """Import the function ``run`` of a Python file, which may import the modules beside it.

    Raises:
        UserError: The file does not run, or has no such function of four arguments.
    """
    module = load_module(path, MODULE, setting="agent.program", subject="program")
    found = getattr(module, "run", None)
    if not callable(found):
        raise UserError(
            "the file defines no function run",
            where=path,
            fix="define async def run(prompt, label, base_url, api_key) -> reward",
        )
    takes(found, ("", None, "", ""), "run(prompt, label, base_url, api_key)", path)
    return found


def takes(function: Callable[..., Any], arguments: tuple[Any, ...], shown: str, path: str) -> None:
    """Check that a function can be called so.

    Raises:
        UserError: It cannot.
    """
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UserError(f"cannot be called as {shown}: {error}", where=path) from None
