"""From a YAML node to a value of the type that its field wants."""

import math
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml

from megarlhf.config.settings import Setting, alternatives
from megarlhf.config.wording import fix_for, given, in_words
from megarlhf.config.yaml_text import is_null
from megarlhf.errors import UserError


def converted(node: yaml.Node, default: Setting, where: str) -> Any:
    """The value of ``node`` in the type of a setting, or a UserError that says what it expects."""
    try:
        return _value(node, default.type)
    except ValueError:
        what = f"{default.key} expects {in_words(default.type)}, got {given(node)}"
        raise UserError(what, where=where, fix=fix_for(node, default)) from None


def _value(node: yaml.Node, kind: Any) -> Any:
    """The value of ``node`` as type ``kind``; ValueError where it is none."""
    for alternative in alternatives(kind):
        try:
            if get_origin(alternative) in (list, tuple):
                return _list(node, alternative)
            if get_origin(alternative) is Literal:
                return _choice(node, get_args(alternative))
            return _SCALARS[alternative](_scalar(node))
        except ValueError:
            continue
    raise ValueError


def _scalar(node: yaml.Node) -> yaml.ScalarNode:
    if not isinstance(node, yaml.ScalarNode) or node.tag.startswith("!"):
        raise ValueError
    return node


def _list(node: yaml.Node, kind: Any) -> list[Any] | tuple[Any, ...]:
    """``list[X]`` and ``tuple[X, ...]``."""
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError
    return get_origin(kind)(_value(item, get_args(kind)[0]) for item in node.value)


def _choice(node: yaml.Node, choices: tuple[Any, ...]) -> Any:
    text = _scalar(node).value
    for choice in choices:
        if text == str(choice):
            return choice
    raise ValueError


def _none(node: yaml.ScalarNode) -> None:
    if not is_null(node):
        raise ValueError


def _bool(node: yaml.ScalarNode) -> bool:
    if not node.tag.endswith(":bool"):
        raise ValueError
    return node.value.lower() in ("true", "yes", "on")


def _int(node: yaml.ScalarNode) -> int:
    try:
        return int(_bare(node))
    except ValueError:
        number = _float(node)  # 1e6 and 8.0 are whole numbers as well, 1.5 is not
        if not number.is_integer():
            raise
        return int(number)


def _float(node: yaml.ScalarNode) -> float:
    number = float(_bare(node))
    if not math.isfinite(number):
        raise ValueError
    return number


def _str(node: yaml.ScalarNode) -> str:
    if is_null(node):
        raise ValueError
    return node.value


def _bare(node: yaml.ScalarNode) -> str:
    """The text of an unquoted scalar: a quoted "8" is no number."""
    if node.style:
        raise ValueError
    return node.value


_SCALARS = {NoneType: _none, bool: _bool, int: _int, float: _float, str: _str}
