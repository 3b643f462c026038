"""The settings of a configuration: its leaves, by dotted key."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from megarlhf.config.schema import REQUIRED


class Setting(NamedTuple):
    """One leaf of a configuration."""

    key: str  # dotted
    type: Any  # as annotated
    value: Any


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting in a configuration, in the order of its fields."""
    types = get_type_hints(type(config))
    for field in fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if is_dataclass(value):
            yield from settings(value, f"{key}.")
        else:
            yield Setting(key, types[field.name], value)


def missing_required(config: Any) -> list[str]:
    """The dotted keys of the required settings that have no value."""
    defaults = settings(type(config)())
    required = {default.key for default in defaults if default.value == REQUIRED}
    return [key for key, _, value in settings(config) if key in required and value == REQUIRED]


def filled(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """``config`` with the settings in ``values`` (by dotted key) replaced."""
    changes = {}
    for field in fields(config):
        key, current = prefix + field.name, getattr(config, field.name)
        if is_dataclass(current):
            changes[field.name] = filled(current, values, f"{key}.")
        elif key in values:
            changes[field.name] = values[key]
    return replace(config, **changes)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as `json.loads` gives it back: nested dictionaries, with lists for tuples."""
    return json.loads(json.dumps(asdict(config)))


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, null first and text last (text accepts everything)."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(sorted(members, key=lambda member: (member is not NoneType, member is str)))
