"""Conversations: lists of messages, and the order in which roles may speak."""

from typing import Any

from megarlhf.errors import UserError

Message = dict[str, Any]  # {"role": str, "content": str, ...}

START = "the start"
TOOLS = frozenset({"tool", "function", "ipython"})  # names for a tool's answer
MAY_FOLLOW = {  # a role: after which one it may speak
    "system": {START},
    "developer": {START, "system"},
    "user": {START, "system", "developer", "assistant", "tool"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}


def is_conversation(value: Any) -> bool:
    """Whether it is a list of messages, at least one."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def check_order(messages: list[Message], where: str) -> None:
    """Refuse roles that are unknown or out of order.

    Chat templates mostly render anything; a message that is lost or in the wrong place is seen
    much later, in what the model learns.

    Raises:
        UserError: Names the message and what may come before it.
    """
    before = START
    for number, message in enumerate(messages, start=1):
        role = "tool" if message["role"] in TOOLS else message["role"]
        if role not in MAY_FOLLOW:
            raise UserError(
                f"message {number} has the unknown role {role!r}",
                where=where,
                fix=f"use {', '.join(MAY_FOLLOW)}",
            )
        if before not in MAY_FOLLOW[role]:
            allowed = " or ".join(name for name in (START, *MAY_FOLLOW) if name in MAY_FOLLOW[role])
            raise UserError(
                f"the roles are out of order: message {number} ({role}) follows {before}",
                where=where,
                fix=f"{role} comes after {allowed}; correct the row's messages",
            )
        before = role


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )
