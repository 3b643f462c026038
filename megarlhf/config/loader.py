"""From a YAML file and ``a.b.c=value`` overrides to a configuration.

Both sources are flattened to ``{dotted key: value}``, later ones win (the file's ``base``, the
file, the overrides), and the result replaces fields of the default configuration. The type of a
value is decided by its field, not by YAML: ``1e-6`` is a number and ``output.dir=2024`` a name.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from megarlhf.config.keys import Keys
from megarlhf.config.schema import REQUIRED
from megarlhf.config.settings import Setting, alternatives, filled
from megarlhf.config.values import converted
from megarlhf.config.wording import given, where_is
from megarlhf.config.yaml_text import Loader, is_null
from megarlhf.errors import UserError

Config = TypeVar("Config")

BASE_KEY = "base"  # top-level key of a YAML file: the file whose values it overrides
COMMAND_LINE = "command line"


def load(cls: type[Config], path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Builds a configuration from its defaults, a YAML file and command-line overrides.

    Args:
        cls: A tree of frozen dataclasses in which every field has a default, e.g. `RLConfig`.
        path: A YAML file, or None. Its top-level key ``base`` may name another one, relative to
            it, whose values it overrides.
        overrides: ``dotted.key=value``; the last of several for one key counts.

    Raises:
        UserError: Something cannot be read, is not a key, or does not fit its field's type.
    """
    keys = Keys.of(cls)
    values = {} if path is None else _read_file(Path(path), keys)
    for override in overrides:
        key, value = _read_override(override, keys)
        values[key] = value
    return filled(cls(), values)


def _read_file(file: Path, keys: Keys, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a YAML file over those of its base; the files ``including`` led here."""
    inherited, values = {}, {}
    chain = (*including, file.resolve())
    for key, node in _entries(_parse(file), keys):
        if key == BASE_KEY:
            inherited = _read_file(_base_file(file, node, chain), keys, chain)
        else:
            values[key] = converted(node, keys.defaults[key], where_is(node))
    return inherited | values


def _base_file(file: Path, node: yaml.Node, chain: tuple[Path, ...]) -> Path:
    base = file.parent / converted(node, Setting(BASE_KEY, str, REQUIRED), where_is(node))
    if not base.is_file():
        raise UserError(
            f"no such base file: {base}",
            where=where_is(node),
            fix=f"give its path relative to the directory {file.parent}",
        )
    if base.resolve() in chain:
        raise UserError(
            "base files form a cycle: " + " -> ".join(map(str, (*chain, base.resolve()))),
            where=where_is(node),
            fix="remove the 'base' key from one of them",
        )
    return base


def _parse(file: Path) -> yaml.MappingNode:
    try:
        with file.open(encoding="utf-8") as stream:
            node = yaml.compose(stream, Loader)
    except FileNotFoundError:
        raise UserError("no such config file", where=str(file), fix="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the config file: {error}", where=str(file), fix="give a YAML text file"
        ) from None
    except yaml.YAMLError as error:
        line = f":{error.problem_mark.line + 1}" if isinstance(error, yaml.MarkedYAMLError) else ""
        parts = (getattr(error, name, None) for name in ("context", "problem", "reason"))
        raise UserError(
            f"not valid YAML: {', '.join(filter(None, parts))}",
            where=f"{file}{line}",
            fix="mind the indentation (spaces, no tabs), colons and quotes around that line",
        ) from None
    return yaml.MappingNode("tag:yaml.org,2002:map", []) if node is None else node


def _entries(mapping: yaml.Node, keys: Keys, section: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """The settings in a YAML mapping, nested sections opened, and ``base``; checks the keys."""
    if is_null(mapping):
        return
    if not isinstance(mapping, yaml.MappingNode):
        raise keys.section_error(section, given(mapping), where_is(mapping))
    first_line: dict[str, int] = {}
    for key_node, node in mapping.value:
        where = where_is(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{given(key_node)} cannot be a key", where=where, fix="use a name")
        name = key_node.value
        key = f"{section}.{name}" if section else name
        if name in first_line:
            raise UserError(
                f"duplicate key {key!r}, first given in line {first_line[name]}",
                where=where,
                fix="keep one of them",
            )
        first_line[name] = key_node.start_mark.line + 1
        if key == BASE_KEY:
            yield key, node
        elif "." in name:
            raise UserError(
                f"dotted key {key!r} in a file",
                where=where,
                fix=f"nest it: '{name.replace('.', ': {')}: ...{'}' * name.count('.')}'",
            )
        else:
            keys.check_known(key, where)
            if key in keys.sections:
                yield from _entries(node, keys, key)
            else:
                yield key, node


def _read_override(override: str, keys: Keys) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(
            f"{override!r} is not an override", where=COMMAND_LINE, fix="write dotted.key=value"
        )
    keys.check_known(key, COMMAND_LINE)
    if key in keys.sections:
        raise keys.section_error(key, repr(text), COMMAND_LINE)
    default = keys.defaults[key]
    return key, converted(_override_node(text, default.type), default, COMMAND_LINE)


def _override_node(text: str, kind: Any) -> yaml.Node:
    """A quoted string, or a list where one is wanted, is read as YAML; all else is the bare text.

    So ``data.input_template=Question: {}`` needs no second pair of quotes.
    """
    try:
        node = yaml.compose(text, Loader)
    except yaml.YAMLError:
        node = None
    if (isinstance(node, yaml.ScalarNode) and node.style) or (
        isinstance(node, yaml.SequenceNode) and str not in alternatives(kind)
    ):
        return node
    tag = Loader("").resolve(yaml.ScalarNode, text, (True, False))
    return yaml.ScalarNode(tag, text)
