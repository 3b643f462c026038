import math
import re

import numpy
import pytest
import torch

from megarlhf.data.records import Prompt, Sample
from megarlhf.errors import UserError
from megarlhf.rollout.rewards import load_reward_function, score


@pytest.fixture
def load(tmp_path):
    def load(text, name="reward.py"):
        file = tmp_path / name
        file.write_text(text)
        return load_reward_function(str(file))

    return load


def samples_of(*texts):
    return [
        Sample(Prompt(i, f"p{i}:", (1,), label=i), [2], [-1.0], 0, "stop", text)
        for i, text in enumerate(texts)
    ]


def error_of(function, *args) -> UserError:
    with pytest.raises(UserError) as caught:
        function(*args)
    return caught.value


def score_error(result, count=2) -> str:
    """What is said of a function that returns ``result``; samples keep no reward."""
    samples = samples_of(*"abcd"[:count])
    returned = result if callable(result) else lambda *_: result
    error = error_of(score, returned, samples, "reward.py")
    assert error.where == "reward.py"
    return str(error)


# --- The file -----------------------------------------------------------------------------------


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


# --- Its values ---------------------------------------------------------------------------------


def test_it_gets_queries_prompts_and_labels():
    seen = []
    score(lambda *lists: seen.extend(lists) or [0.0, 0.0], samples_of("x", "y"), "")
    assert seen == [["p0:x", "p1:y"], ["p0:", "p1:"], [0, 1]]


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5],
        (1.0, 0.5),
        torch.tensor([1.0, 0.5]),
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), torch.tensor([0.5])],
        numpy.array([1.0, 0.5], dtype=numpy.float32),
        [numpy.float64(1.0), numpy.float16(0.5)],
        [True, 0.5],
    ],
    ids=repr,
)
def test_numbers_of_every_kind_become_floats(values):
    samples = samples_of("a", "b")
    score(lambda *_: values, samples, "")
    assert [sample.reward for sample in samples] == [1.0, 0.5]
    assert {type(sample.reward) for sample in samples} == {float}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "1 values for 2 responses"),
        ([1.0, 2.0, 3.0], "3 values for 2 responses"),
        (torch.ones(3), "3 values for 2 responses"),
        (0.5, "0.5 for 2 responses"),
        (torch.tensor(0.5), "0.5 for 2 responses"),
        (numpy.float32(0.5), "0.5 for 2 responses"),
        (None, "None for 2 responses"),
        ({"a": 1.0, "b": 2.0}, "{'a': 1.0, 'b': 2.0} for 2 responses"),
        ("no", "'no' for 2 responses"),
    ],
)
def test_not_a_number_for_each(values, said):
    text = score_error(values)
    assert f"reward_func returned {said}" in text
    assert "'p0:'" in text
    assert "one number a response" in text


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (None, "returned None, not a number"),
        ("good", "returned 'good', not a number"),
        ([1.0], "returned [1.0], not a number"),
        (torch.ones(2), "returned tensor([1., 1.]), not a number"),
        (10**400, "not a number"),
        (1j, "returned 1j, not a number"),
        (math.nan, "returned nan"),
        (-math.inf, "returned -inf"),
        (torch.tensor(math.nan), "returned nan"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_a_value_that_is_no_number_shows_its_prompt_and_response(bad, said):
    text = score_error([1.0, bad])
    assert said in text
    assert "for the prompt 'p1:' and the response 'b'" in text


def test_a_table_is_not_one_number_each():
    assert "returned [1.0], not a number" in score_error(torch.ones(2, 1))


def test_the_prompt_that_fails_is_shown():
    def picky(queries, prompts, labels):
        return [1.0 / (query != "p2:c") for query in queries]

    text = score_error(picky, count=4)
    assert "raised ZeroDivisionError" in text
    assert "for the prompt 'p2:' and the response 'c'" in text


def test_a_function_that_fails_only_for_many_shows_the_first():
    def lonely(queries, prompts, labels):
        if len(queries) > 1:
            raise MemoryError("too many")
        return [0.0]

    assert re.search(r"raised MemoryError\('too many'\) for the prompt 'p0:'", score_error(lonely))


def test_long_texts_are_cut():
    samples = samples_of("y" * 10_000)
    error = error_of(score, lambda *_: [None], samples, "reward.py")
    assert len(str(error)) < 1000
