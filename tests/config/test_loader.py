import json
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarlhf.config import loader
from megarlhf.config.schema import RLConfig, SFTConfig
from megarlhf.config.settings import missing_required, to_dict
from megarlhf.config.settings import settings as settings_of
from megarlhf.config.wording import describe
from megarlhf.config.yaml_text import to_yaml
from megarlhf.errors import UserError


@dataclass(frozen=True)
class Inner:
    sizes: list[int] = field(default_factory=list)
    names: tuple[str, ...] = ("a", "b")
    ratio: float | str = 1.0


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=lambda: Inner(sizes=[7]))
    mode: Literal["none", "all"] = "none"
    limit: int | None = None
    title: str | None = None
    flag: bool = False
    count: int = 1
    rate: float = 0.5
    path: str = ""


def from_line(*overrides):
    return loader.load(Outer, None, overrides)


def error_of(function, *args) -> UserError:
    with pytest.raises(UserError) as caught:
        function(*args)
    return caught.value


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return write


# --- What is read -------------------------------------------------------------------------------


def test_defaults():
    assert loader.load(RLConfig, None, []) == RLConfig()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "1e-6", 1e-6),
        ("rate", "3", 3.0),
        ("count", "12", 12),
        ("count", "1e3", 1000),
        ("count", "010", 10),
        ("count", "-1", -1),
        ("flag", "true", True),
        ("flag", "off", False),
        ("mode", "none", "none"),
        ("mode", '"all"', "all"),
        ("limit", "null", None),
        ("limit", "none", None),
        ("limit", "4", 4),
        ("title", "None", None),
        ("title", "", None),
        ("title", '"none"', "none"),
        ("title", "none_of_it", "none_of_it"),
        ("path", "123", "123"),
        ("path", "yes", "yes"),
        ("path", "1e-6", "1e-6"),
        ("path", "json@a=b#1", "json@a=b#1"),
        ("path", "[INST] {} [/INST]", "[INST] {} [/INST]"),
        ("path", "[{}]", "[{}]"),
        ("path", "Question: {} # Answer: ", "Question: {} # Answer: "),
        ("path", r'"Question: {}\nAnswer:"', "Question: {}\nAnswer:"),
        ("path", '"null"', "null"),
        ("inner.sizes", "[1, 2]", [1, 2]),
        ("inner.sizes", "[]", []),
        ("inner.names", "[x, 2]", ("x", "2")),
        ("inner.ratio", "2", 2.0),
        ("inner.ratio", "auto", "auto"),
    ],
)
def test_override_takes_the_type_of_its_field(key, text, value):
    config = from_line(f"{key}={text}")
    for name in key.split("."):
        config = getattr(config, name)
    assert config == value
    assert type(config) is type(value)


def test_defaults_of_a_nested_section_come_from_its_owner():
    assert from_line("inner.ratio=2").inner == Inner(sizes=[7], ratio=2.0)


def test_last_override_wins():
    assert from_line("count=2", "count=3").count == 3


def test_file_then_overrides(write):
    file = write("count: 2\nrate: 1e-6\npath: 2024\ninner:\n  sizes: [1, 2]\n  names: [yes]\n")
    config = loader.load(Outer, file, ["count=3"])
    inner = Inner(sizes=[1, 2], names=("yes",))
    assert config == Outer(inner=inner, count=3, rate=1e-6, path="2024")


def test_empty_file_and_empty_section_change_nothing(write):
    assert loader.load(Outer, write("# nothing\n"), []) == Outer()
    assert loader.load(Outer, write("inner:\n  # sizes: [1]\ncount: 2\n"), []) == Outer(count=2)


def test_base_is_relative_and_overridden(write):
    write("count: 5\nrate: 0.1\ninner: {sizes: [1], ratio: 3}\n", "common/first.yaml")
    write("base: common/first.yaml\nrate: 0.2\n", "second.yaml")
    file = write("inner: {ratio: 4}\nbase: second.yaml\n")
    config = loader.load(Outer, str(file), [])
    assert config == Outer(count=5, rate=0.2, inner=Inner(sizes=[1], ratio=4.0))


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("count=fast", ["count expects a whole number", "got 'fast'", "default is 1"]),
        ("count=1.5", ["a whole number", "got '1.5'"]),
        ("count=true", ["a whole number", "got 'true'"]),
        ("count=", ["a whole number", "got nothing"]),
        ("count='8'", ["a whole number", "got the quoted text '8'"]),
        ("rate=fast", ["rate expects a number, got 'fast'"]),
        ("rate=nan", ["a number", "'nan'"]),
        ("rate=1e999", ["a number", "'1e999'"]),
        ("flag=1", ["true or false", "'1'"]),
        ("mode=some", ["one of none, all", "'some'"]),
        ("limit=few", ["a whole number or null", "'few'"]),
        ("path=null", ["path expects text, got null", "quotes"]),
        ("inner.sizes=3", ["inner.sizes expects a list", "a whole number", "'3'"]),
        ("inner.sizes=[1, x]", ["a list", "[1, x]"]),
        ("count=[1]", ["a whole number", "the list [1]"]),
        ("inner=3", ["inner expects a section", "'3'", "sizes, names, ratio"]),
        ("inner={sizes: 3}", ["inner expects a section"]),
        ("count", ["'count' is not an override", "dotted.key=value"]),
    ],
)
def test_wrong_override(override, parts):
    error = error_of(from_line, override)
    assert error.where == "command line"
    assert error.fix
    assert all(part in str(error) for part in parts), str(error)


@pytest.mark.parametrize(
    ("key", "guesses"),
    [
        ("optimizer.lrr", ["'optimizer.lr'", "lr, min_lr_ratio"]),
        ("optimzer.lr", ["'optimizer.lr'"]),
        ("lr", ["'optimizer.lr'"]),
        ("train.samples_per_prompt", ["'rollout.samples_per_prompt'"]),
        ("parallel.tensor", ["'model.parallel.tensor'"]),
        ("parallel", ["'model.parallel'"]),
        ("dtype", ["'model.dtype'", "'rollout.dtype'"]),
        ("optimizer.lr.x", ["'optimizer.lr'"]),
        ("--optimizer.lr", ["'optimizer.lr'"]),
        ("qqq", ["Known sections: model, optimizer, data"]),
    ],
)
def test_unknown_key_names_similar_ones(key, guesses):
    error = error_of(loader.load, RLConfig, None, [f"{key}=1"])
    assert error.where == "command line"
    assert f"unknown key {key!r}" in error.what
    assert all(guess in error.fix for guess in guesses), error.fix


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("count: 1\n\ncoumt: 2\n", 3, ["unknown key 'coumt'", "'count'"]),
        ("inner:\n  sizes: []\n  size: 1\n", 3, ["unknown key 'inner.size'", "'inner.sizes'"]),
        ("innr:\n  sizes: []\n", 1, ["unknown key 'innr'", "'inner'"]),
        ("count: 1\ninner:\n  ratio: [2]\n", 3, ["inner.ratio expects", "a number", "[2]"]),
        ("flag: !!python/name:os.system ''\n", 1, ["flag expects true or false"]),
        ("path: !env HOME\n", 1, ["path expects text", "the YAML tag !env"]),
        ("rate: {a: 1}\n", 1, ["rate expects a number", "a section"]),
        ("rate: 1\ninner: 3\n", 2, ["inner expects a section", "'3'"]),
        ("rate: 1\ninner: [3]\n", 2, ["inner expects a section", "the list [3]"]),
        ("- count\n", 1, ["the file expects a section", "the list [count]"]),
        ("count: 1\nrate: 1\ncount: 2\n", 3, ["duplicate key 'count'", "line 1"]),
        ("inner: {ratio: 1}\nrate: 1\ninner: {}\n", 3, ["duplicate key 'inner'", "line 1"]),
        ("inner.ratio: 3\n", 1, ["dotted key", "inner: {ratio: ...}"]),
        ("? [a]\n: 1\n", 1, ["the list [a] cannot be a key"]),
        ("count: 1\nrate: [1\n", 3, ["not valid YAML", "flow sequence"]),
        ("count: 1\n\trate: 1\n", 2, ["not valid YAML", r"'\t'", "tabs"]),
        ("count: 1\n---\nrate: 1\n", 2, ["not valid YAML", "single document"]),
        ("count: 1\nbase: nowhere.yaml\n", 2, ["no such base file", "nowhere.yaml"]),
        ("base: [a]\n", 1, ["base expects text", "the list [a]"]),
    ],
)
def test_wrong_file_names_the_line(write, text, line, parts):
    file = write(text)
    error = error_of(loader.load, Outer, file, [])
    assert error.where == f"{file}:{line}"
    assert error.fix
    assert all(part in str(error) for part in parts), str(error)


def test_error_in_a_base_names_the_base(write):
    base = write("\ncount: x\n", "base.yaml")
    assert error_of(loader.load, Outer, write("base: base.yaml\n"), []).where == f"{base}:2"


def test_base_cycle(write):
    write("base: run.yaml\n", "other.yaml")
    error = error_of(loader.load, Outer, write("base: other.yaml\n"), [])
    assert "cycle" in error.what
    assert error.what.count("run.yaml") == 2
    assert error.where.endswith("other.yaml:1")


def test_unreadable_files(tmp_path):
    missing = error_of(loader.load, Outer, tmp_path / "no.yaml", [])
    assert "no such config file" in missing.what
    assert missing.where == str(tmp_path / "no.yaml")
    assert "cannot read" in error_of(loader.load, Outer, tmp_path, []).what
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"path: \xff\xfe")
    assert "cannot read" in error_of(loader.load, Outer, binary, []).what
    binary.write_bytes(b"path: \x00")
    assert "special characters" in error_of(loader.load, Outer, binary, []).what


# --- Out again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [RLConfig, SFTConfig, Outer])
def test_describe_lists_every_setting(cls):
    table = describe(cls)
    assert [one.key for one in table] == [key for key, _, _ in settings_of(cls())]
    required = [one.key for one in table if one.default == "required"]
    assert required == missing_required(cls())


def test_describe_in_words():
    described = {one.key: one for one in describe(RLConfig)}
    table = {key: (one.kind, one.default) for key, one in described.items()}
    assert table["model.path"] == ("text", "required")
    assert table["model.recompute"] == ("one of none, selective, full", "none")
    assert table["optimizer.lr"] == ("a number", "1e-06")
    assert table["data.label_key"] == ("text or null", "null")
    assert table["train.resume"] == ("true or false", "true")
    # From the field's own line, from the base's field that it changes, or none.
    assert (
        described["optimizer.clip_grad"].meaning == "largest global gradient norm; 0: no clipping"
    )
    assert described["ptx.data.max_samples"].meaning == described["data.max_samples"].meaning
    assert described["ptx.data.split"].meaning.startswith("split of train; ")
    assert described["optimizer.weight_decay"].meaning == ""


def test_missing_required():
    assert missing_required(RLConfig()) == [
        "model.path",
        "data.prompts",
        "output.dir",
    ]
    config = loader.load(RLConfig, None, ["model.path=m", "output.dir=o", "reward.function=r.py"])
    assert missing_required(config) == ["data.prompts"]


def values_of(kind):
    """Any value a field of this type may have."""
    if get_args(kind) and type(None) in get_args(kind):
        inner = next(member for member in get_args(kind) if member is not type(None))
        return st.none() | values_of(inner)
    if get_origin(kind) is tuple:
        return st.lists(values_of(get_args(kind)[0]), max_size=3).map(tuple)
    if get_args(kind):  # Literal
        return st.sampled_from(get_args(kind))
    awkward = st.sampled_from(
        ["none", "null", "", "yes", "1e-6", "{}", "a: b", "#", "\n", "~", "="]
    )
    return {
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: awkward | st.text(),
    }[kind]


@st.composite
def configs(draw, section):
    """Instances of the section's class."""
    types = get_type_hints(type(section))
    changes = {}
    for entry in fields(section):
        value = getattr(section, entry.name)
        strategy = configs(value) if is_dataclass(value) else values_of(types[entry.name])
        changes[entry.name] = draw(strategy)
    return replace(section, **changes)


@settings(max_examples=50, deadline=None)
@given(config=configs(SFTConfig()))
def test_yaml_round_trip(tmp_path_factory, config):
    file = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert loader.load(SFTConfig, file, []) == config
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)


def test_config_imports_only_the_standard_library_and_yaml():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import megarlhf.config.loader, megarlhf.config.checks, megarlhf.config.schema\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*(new - sys.stdlib_module_names))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    new = {name for name in result.stdout.split() if "cython" not in name}  # of yaml's C parser
    assert new == {"megarlhf", "yaml"}
