"""From a YAML file and ``a.b.c=value`` overrides to a configuration, and back to text.

Both sources are flattened to ``{dotted key: value}``, later ones win (the file's ``base``, the
file, the overrides), and the result replaces fields of the default configuration. The type of a
value is decided by its field, not by YAML: ``1e-6`` is a number and ``output.dir=2024`` a name.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from megarlhf.config.schema import REQUIRED
from megarlhf.errors import UserError

Config = TypeVar("Config")

BASE_KEY = "base"  # top-level key of a YAML file: the file whose values it overrides
COMMAND_LINE = "command line"


class Setting(NamedTuple):
    """One leaf of a configuration."""

    key: str  # dotted
    type: Any  # as annotated
    value: Any


class _Loader(yaml.SafeLoader):
    """YAML's safe subset in which the word ``none`` is null too."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: quotes the text ``none``, escapes line breaks."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.splitlines() in ([], [text]) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


_NULL = "tag:yaml.org,2002:null"
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_NULL, re.compile(r"(none|None|NONE)\Z"), ["n", "N"])


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
    schema = _Schema.of(cls)
    values = {} if path is None else _read_file(Path(path), schema)
    for override in overrides:
        key, value = _read_override(override, schema)
        values[key] = value
    return _filled(cls(), values)


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


def describe(cls: type) -> list[tuple[str, str, str]]:
    """Every setting of ``cls`` as (dotted key, type in words, default as text or "required").

    Each on one line: a line break in a default is written ``\\n``.
    """
    return [
        (
            key,
            _in_words(kind),
            "required" if default == REQUIRED else _as_text(default).replace("\n", "\\n"),
        )
        for key, kind, default in settings(cls())
    ]


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as `json.loads` gives it back: nested dictionaries, with lists for tuples."""
    return json.loads(json.dumps(asdict(config)))


def to_yaml(config: Any) -> str:
    """The configuration as a YAML text from which `load` builds an equal one."""
    return yaml.dump(
        to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )


# --- Keys ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Schema:
    """The keys a configuration class knows."""

    defaults: dict[str, Setting]
    sections: set[str]  # dotted keys of the nested dataclasses

    @classmethod
    def of(cls, config_class: type) -> "_Schema":
        defaults = {setting.key: setting for setting in settings(config_class())}
        dots = ((key, dot.start()) for key in defaults for dot in re.finditer(r"\.", key))
        return cls(defaults, {key[:end] for key, end in dots})

    def check_known(self, key: str, where: str) -> None:
        """Raises a UserError that names similar keys unless ``key`` is a setting or a section."""
        known = [*self.defaults, *self.sections]
        if key in known:
            return
        section, _, name = key.rpartition(".")
        same_name = [other for other in known if other.rpartition(".")[2] == name]
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6 if same_name else 0)
        guesses = " or ".join(repr(guess) for guess in dict.fromkeys(same_name + nearest))
        fix = f"did you mean {guesses}?"
        if not same_name:
            place = section if section in self.sections else ""
            fix += f" Known {f'in {place}' if place else 'sections'}: {self.names_in(place)}"
        raise UserError(f"unknown key {key!r}", where=where, fix=fix)

    def section_error(self, section: str, given: str, where: str) -> UserError:
        return UserError(
            f"{section or 'the file'} expects a section, got {given}",
            where=where,
            fix=f"set the keys of the section: {self.names_in(section)}",
        )

    def names_in(self, section: str) -> str:
        prefix = f"{section}." if section else ""
        below = [key.removeprefix(prefix) for key in self.defaults if key.startswith(prefix)]
        return ", ".join(dict.fromkeys(key.partition(".")[0] for key in below))


def _filled(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """``config`` with the settings in ``values`` (by dotted key) replaced."""
    changes = {}
    for field in fields(config):
        key, current = prefix + field.name, getattr(config, field.name)
        if is_dataclass(current):
            changes[field.name] = _filled(current, values, f"{key}.")
        elif key in values:
            changes[field.name] = values[key]
    return replace(config, **changes)


# --- The two sources ----------------------------------------------------------------------------


def _read_file(file: Path, schema: _Schema, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a YAML file over those of its base; the files ``including`` led here."""
    inherited, values = {}, {}
    chain = (*including, file.resolve())
    for key, node in _entries(_parse(file), schema):
        if key == BASE_KEY:
            inherited = _read_file(_base_file(file, node, chain), schema, chain)
        else:
            values[key] = _converted(node, schema.defaults[key], _where(node))
    return inherited | values


def _base_file(file: Path, node: yaml.Node, chain: tuple[Path, ...]) -> Path:
    base = file.parent / _converted(node, Setting(BASE_KEY, str, REQUIRED), _where(node))
    if not base.is_file():
        raise UserError(
            f"no such base file: {base}",
            where=_where(node),
            fix=f"give its path relative to the directory {file.parent}",
        )
    if base.resolve() in chain:
        raise UserError(
            "base files form a cycle: " + " -> ".join(map(str, (*chain, base.resolve()))),
            where=_where(node),
            fix="remove the 'base' key from one of them",
        )
    return base


def _parse(file: Path) -> yaml.MappingNode:
    try:
        with file.open(encoding="utf-8") as stream:
            node = yaml.compose(stream, _Loader)
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


def _entries(
    mapping: yaml.Node, schema: _Schema, section: str = ""
) -> Iterator[tuple[str, yaml.Node]]:
    """The settings in a YAML mapping, nested sections opened, and ``base``; checks the keys."""
    if _is_null(mapping):
        return
    if not isinstance(mapping, yaml.MappingNode):
        raise schema.section_error(section, _given(mapping), _where(mapping))
    first_line: dict[str, int] = {}
    for key_node, node in mapping.value:
        where = _where(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{_given(key_node)} cannot be a key", where=where, fix="use a name")
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
            schema.check_known(key, where)
            if key in schema.sections:
                yield from _entries(node, schema, key)
            else:
                yield key, node


def _read_override(override: str, schema: _Schema) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(
            f"{override!r} is not an override", where=COMMAND_LINE, fix="write dotted.key=value"
        )
    schema.check_known(key, COMMAND_LINE)
    if key in schema.sections:
        raise schema.section_error(key, repr(text), COMMAND_LINE)
    default = schema.defaults[key]
    return key, _converted(_override_node(text, default.type), default, COMMAND_LINE)


def _override_node(text: str, kind: Any) -> yaml.Node:
    """A quoted string, or a list where one is wanted, is read as YAML; all else is the bare text.

    So ``data.input_template=Question: {}`` needs no second pair of quotes.
    """
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError:
        node = None
    if (isinstance(node, yaml.ScalarNode) and node.style) or (
        isinstance(node, yaml.SequenceNode) and str not in _alternatives(kind)
    ):
        return node
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))
    return yaml.ScalarNode(tag, text)


# --- Values -------------------------------------------------------------------------------------


def _converted(node: yaml.Node, default: Setting, where: str) -> Any:
    """The value of ``node`` in the type of a setting, or a UserError that says what it expects."""
    try:
        return _value(node, default.type)
    except ValueError:
        what = f"{default.key} expects {_in_words(default.type)}, got {_given(node)}"
        raise UserError(what, where=where, fix=_fix(node, default)) from None


def _value(node: yaml.Node, kind: Any) -> Any:
    """The value of ``node`` as type ``kind``; ValueError where it is none."""
    for alternative in _alternatives(kind):
        try:
            if get_origin(alternative) in (list, tuple):
                return _list(node, alternative)
            if get_origin(alternative) is Literal:
                return _choice(node, get_args(alternative))
            return _SCALARS[alternative](_scalar(node))
        except ValueError:
            continue
    raise ValueError


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, null first and text last (text accepts everything)."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(sorted(members, key=lambda member: (member is not NoneType, member is str)))


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
    if not _is_null(node):
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
    if _is_null(node):
        raise ValueError
    return node.value


def _bare(node: yaml.ScalarNode) -> str:
    """The text of an unquoted scalar: a quoted "8" is no number."""
    if node.style:
        raise ValueError
    return node.value


def _is_null(node: yaml.Node) -> bool:
    return node.tag == _NULL


_SCALARS = {NoneType: _none, bool: _bool, int: _int, float: _float, str: _str}
_WORDS = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


# --- Words for people ---------------------------------------------------------------------------


def _in_words(kind: Any) -> str:
    """A type as it reads after "expects": "a number", "one of a, b", "text or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_in_words(member) for member in reversed(_alternatives(kind)))
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (list, tuple):
        return f"a list (each item {_in_words(arguments[0])})"
    return _WORDS[kind]


def _given(node: yaml.Node) -> str:
    """What stands at ``node``, as it reads after "got"."""
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return f"the list {_list_text(node)}"
    if node.tag.startswith("!"):
        return f"the YAML tag {node.tag}"
    if _is_null(node):
        return node.value or "nothing"
    return f"the quoted text {node.value!r}" if node.style else repr(node.value)


def _list_text(node: yaml.SequenceNode) -> str:
    items = [item.value if isinstance(item, yaml.ScalarNode) else "..." for item in node.value]
    return f"[{', '.join(items)}]"


def _fix(node: yaml.Node, default: Setting) -> str:
    if _is_null(node) and node.value:
        return f"give a value; if the word {node.value!r} is meant, put it in quotes"
    if default.value == REQUIRED:
        return "give a value of that type"
    return f"give a value of that type; the default is {_as_text(default.value)}"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _where(node: yaml.Node) -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"
