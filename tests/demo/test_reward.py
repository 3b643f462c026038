import random
from pathlib import Path

import pytest

from megarlhf.demo import reward
from megarlhf.demo.reward import reward_func
from megarlhf.demo.task import draw_sums
from megarlhf.rewards.function_file import load_reward_function

PROMPT = "<s><|user|>what is three plus four plus two minus one?<|assistant|>"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("it is eight.", 1.0),
        ("it is nine.", 0.0),
        ("first three plus four is seven, seven plus two is nine, nine minus one is eight.", 1.0),
        ("eight, no: nine", 0.0),
        ("eight", 1.0),
        ("", 0.0),
        ("eighteen eights", 0.0),  # neither is a number of the task
        ("\n\ufffd\x00 ?? 8", 0.0),
        ("what is one?", 0.0),  # the prompt's own numbers do not count
    ],
)
def test_the_last_number_counts(response, score):
    assert reward_func([PROMPT + response], [PROMPT], ["eight"]) == [score]


def test_every_worked_answer_scores():
    sums = draw_sums("any", 100, held_out=True)
    queries = [PROMPT + s.solution for s in sums]
    assert reward_func(queries, [PROMPT] * 100, [s.answer for s in sums]) == [1.0] * 100


def test_it_loads_as_a_users_reward_file():
    function = load_reward_function(str(Path(reward.__file__)))
    assert function([PROMPT + "it is eight."], [PROMPT], ["eight"]) == [1.0]


def test_scores_are_per_response_in_order():
    labels = ["one", "two", "three"]
    answers = random.Random(1).sample(labels, 3)
    expected = [float(a == b) for a, b in zip(answers, labels, strict=True)]
    assert reward_func([PROMPT + a for a in answers], [PROMPT] * 3, labels) == expected
    assert reward_func([], [], []) == []
