"""Types, defaults and YAML nodes in words for people."""

import json
from functools import reduce
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml

from megarlhf.config.meanings import meanings_of
from megarlhf.config.schema import REQUIRED
from megarlhf.config.settings import Setting, alternatives, settings
from megarlhf.config.yaml_text import is_null

_WORDS = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


class Description(NamedTuple):
    """A setting in words, each on one line: a line break in a default is written ``\\n``."""

    key: str  # dotted
    kind: str  # its type
    default: str  # or "required"
    meaning: str  # empty where the key says it


def describe(cls: type) -> list[Description]:
    """Every setting of ``cls``."""
    config = cls()
    return [
        Description(
            key,
            in_words(kind),
            "required" if default == REQUIRED else as_text(default).replace("\n", "\\n"),
            _meaning(config, key),
        )
        for key, kind, default in settings(config)
    ]


def _meaning(config: Any, key: str) -> str:
    *sections, name = key.split(".")
    return meanings_of(type(reduce(getattr, sections, config))).get(name, "")


def in_words(kind: Any) -> str:
    """A type as it reads after "expects": "a number", "one of a, b", "text or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(in_words(member) for member in reversed(alternatives(kind)))
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (list, tuple):
        return f"a list (each item {in_words(arguments[0])})"
    return _WORDS[kind]


def given(node: yaml.Node) -> str:
    """What stands at ``node``, as it reads after "got"."""
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return f"the list {_list_text(node)}"
    if node.tag.startswith("!"):
        return f"the YAML tag {node.tag}"
    if is_null(node):
        return node.value or "nothing"
    return f"the quoted text {node.value!r}" if node.style else repr(node.value)


def _list_text(node: yaml.SequenceNode) -> str:
    items = [item.value if isinstance(item, yaml.ScalarNode) else "..." for item in node.value]
    return f"[{', '.join(items)}]"


def fix_for(node: yaml.Node, default: Setting) -> str:
    """What to do about a value that does not fit."""
    if is_null(node) and node.value:
        return f"give a value; if the word {node.value!r} is meant, put it in quotes"
    if default.value == REQUIRED:
        return "give a value of that type"
    return f"give a value of that type; the default is {as_text(default.value)}"


def as_text(value: Any) -> str:
    """A setting's value as one would write it."""
    return value if isinstance(value, str) else json.dumps(value)


def where_is(node: yaml.Node) -> str:
    """``file:line``."""
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"
