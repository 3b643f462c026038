import math

import numpy
import pytest
import torch

from megarlhf.rewards.returned import read_returned
from megarlhf.rewards.scorer import CallFailed


def refused(returned, count=2) -> str:
    with pytest.raises(CallFailed) as caught:
        read_returned(returned, count, "reward_func")
    return str(caught.value)


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
        {"rewards": torch.tensor([1.0, 0.5])},
    ],
    ids=repr,
)
def test_numbers_of_every_kind_become_floats(values):
    read = read_returned(values, 2, "reward_func")
    assert read.rewards == read.scores == [1.0, 0.5]
    assert {type(value) for value in read.rewards} == {float}


def test_scores_and_logs():
    read = read_returned(
        {
            "rewards": [1.0, 2.0],
            "scores": torch.tensor([0.0, 1.0]),
            "extra_logs": {"long": [3, 4.0], "one": 5, "tensor": torch.ones(2), "odd": [math.nan]},
        },
        2,
        "reward_func",
    )
    assert (read.rewards, read.scores) == ([1.0, 2.0], [0.0, 1.0])
    assert read.logs == {"long": [3.0, 4.0], "one": [5.0], "tensor": [1.0, 1.0], "odd": []}


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
        ({"a": 1.0, "b": 2.0}, "{'a': 1.0, 'b': 2.0} without 'rewards'"),
        ({"rewards": [1.0]}, "1 values for 2 responses"),
        ("no", "'no' for 2 responses"),
    ],
)
def test_not_a_number_for_each(values, said):
    assert refused(values) == f"reward_func returned {said}"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (None, "returned None, not a number"),
        ("1.0", "returned '1.0', not a number"),
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
def test_a_value_that_is_no_number(bad, said):
    assert said in refused([1.0, bad])
    assert said in refused({"rewards": [0.0, 0.0], "scores": [1.0, bad]})


def test_a_table_is_not_one_number_each():
    assert "returned [1.0], not a number" in refused(torch.ones(2, 1))


@pytest.mark.parametrize("logs", [[1.0], {"name": "text"}, {"name": None}])
def test_logs_that_are_no_numbers(logs):
    assert "extra_logs" in refused({"rewards": [1.0, 2.0], "extra_logs": logs})
