import asyncio
import sys

import pytest

from megarlhf.errors import UserError
from megarlhf.rewards.function_file import call_reward_function, load_reward_function
from megarlhf.rewards.scorer import Batch, CallFailed


@pytest.fixture
def load(write):
    return lambda *file: load_reward_function(write(*file))


def error_of(function, *args) -> UserError:
    with pytest.raises(UserError) as caught:
        function(*args)
    return caught.value


def test_a_function_of_three_arguments(load):
    function = load("def reward_func(queries, prompts, labels):\n    return [1.0]\n")
    assert function(["q"], ["p"], [None]) == [1.0]
    assert callable(load("def reward_func(q, p, l, scale=2.0): ..."))
    assert callable(load("def reward_func(*lists): ..."))


def test_no_file(tmp_path):
    error = error_of(load_reward_function, str(tmp_path / "missing.py"))
    assert error.where == str(tmp_path / "missing.py")
    assert "no such Python file" in error.what
    assert "reward.function" in error.fix


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def reward_func(:\n", ["does not run", "SyntaxError"]),
        ("import no_such_module\n", ["does not run", "No module named 'no_such_module'"]),
        ("1 / 0\n", ["does not run", "ZeroDivisionError"]),
        ("raise SystemExit(3)\n", ["does not run", "SystemExit(3)"]),
        ("def reward(q, p, l): ...\n", ["no reward_func", "reward_func(queries, prompts, labels)"]),
        ("reward_func = 3\n", ["no reward_func"]),
        ("def reward_func(q, p): ...\n", ["cannot be called", "too many positional arguments"]),
        ("def reward_func(q, p, l, m): ...\n", ["cannot be called", "missing", "'m'"]),
        ("def reward_func(*, queries, prompts, labels): ...\n", ["cannot be called"]),
    ],
)
def test_a_file_that_does_not_serve(load, tmp_path, text, parts):
    error = error_of(load, text)
    assert error.where == str(tmp_path / "reward.py")
    assert all(part in str(error) for part in parts), str(error)


def test_a_file_that_is_not_python(load):
    assert "no such Python file" in error_of(load, "def reward_func(q, p, l): ...", "r.txt").what


def test_classes_of_the_file_find_their_module(load):
    """Dataclasses with postponed annotations do, and so does pickle for a pool of processes."""
    function = load(
        "from __future__ import annotations\n"
        "import pickle\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Answer:\n"
        "    value: float\n"
        "def reward_func(queries, prompts, labels):\n"
        "    return [pickle.loads(pickle.dumps(Answer(1.5))).value] * len(queries)\n"
    )
    assert function(["a", "b"], ["a", "b"], [0, 0]) == [1.5, 1.5]


def test_modules_beside_the_file(load, write, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    write("def half(text):\n    return len(text) / 2\n", "reward_parts_a.py")
    write("VALUE = 1.0\n", "reward_parts_b.py")
    function = load(
        "from reward_parts_a import half\n"
        "def reward_func(queries, prompts, labels):\n"
        "    from reward_parts_b import VALUE\n"  # later than the file itself
        "    return [half(query) + VALUE for query in queries]\n"
    )
    assert function(["four"], [""], [None]) == [3.0]


def test_a_neighbour_does_not_hide_a_library(load, write, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    write("raise RuntimeError\n", "colorsys.py")
    load("def reward_func(queries, prompts, labels): ...\n")
    sys.modules.pop("colorsys", None)
    import colorsys

    assert colorsys.rgb_to_hsv


BATCH = Batch(["a:x", "b:y"], ["a:", "b:"], [0, 1])


def call(function):
    return asyncio.run(call_reward_function(function, BATCH))


def test_it_gets_queries_prompts_and_labels():
    seen = []
    call(lambda *lists: seen.extend(lists) or [0.0, 0.0])
    assert seen == [["a:x", "b:y"], ["a:", "b:"], [0, 1]]


def test_what_it_does_to_its_lists_stays_there():
    call(lambda queries, prompts, labels: [float(queries.pop() != "")] * 2)
    assert BATCH.queries == ["a:x", "b:y"]


def test_an_async_function():
    async def reward_func(queries, prompts, labels):
        await asyncio.sleep(0)
        return [1.0, 2.0]

    assert call(reward_func).rewards == [1.0, 2.0]


def test_what_it_raises_is_shown_with_the_line():
    def reward_func(queries, prompts, labels):
        raise KeyError("x")

    with pytest.raises(
        CallFailed, match=r"reward_func raised KeyError\('x'\) \(test_function_file\.py:\d+\)"
    ):
        call(reward_func)
