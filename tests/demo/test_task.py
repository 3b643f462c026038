import json
from collections import Counter
from pathlib import Path

import pytest

from megarlhf.demo.task import NUMBERS, STEPS, Sum, all_sums, draw_sums, write_task


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sum_in_words():
    example = Sum(3, (4, 2, -1))
    assert example.question == "what is three plus four plus two minus one?"
    assert example.answer == "eight"
    assert example.solution == (
        "first three plus four is seven, seven plus two is nine, nine minus one is eight."
    )
    assert example.off_hand == "it is nine."
    assert Sum(3, (4, -2, 1)).off_hand == "it is six."


def test_every_question_says_its_sum():
    for drawn in draw_sums("any", 200, held_out=False):
        first, *rest = drawn.question.removeprefix("what is ").removesuffix("?").split()
        total = NUMBERS.index(first)
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            total += NUMBERS.index(number) * {"plus": 1, "minus": -1}[sign]
        assert NUMBERS[total] == drawn.answer
        assert drawn.solution.endswith(f" is {drawn.answer}.")
        assert len(rest) == 2 * STEPS


def test_sums_are_different_and_split_by_themselves():
    sums = list(all_sums())
    assert len({s.question for s in sums}) == len(sums)
    held_out = sum(s.is_held_out for s in sums)
    assert 0.1 < held_out / len(sums) < 0.15


def test_about_half_of_the_careless_answers_are_right():
    right = [s.off_hand == f"it is {s.answer}." for s in all_sums() if s.is_held_out]
    assert 0.45 < sum(right) / len(right) < 0.55


def test_no_held_out_sum_is_trained_on(tmp_path):
    write_task(tmp_path / "one", seed=1)
    write_task(tmp_path / "two", seed=2)
    trained = {row["input"] for row in read(tmp_path / "one" / "sft.jsonl")}
    trained |= {row["question"] for row in read(tmp_path / "one" / "rl_train.jsonl")}
    for run in ("one", "two"):  # also between seeds
        held_out = {row["question"] for row in read(tmp_path / run / "heldout.jsonl")}
        assert len(held_out) == 256
        assert not held_out & trained


def test_the_files_depend_on_the_arguments_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_task(tmp_path / name, seed, sft_rows=50, rl_rows=20, heldout_rows=10)
    for file in ("sft.jsonl", "rl_train.jsonl", "heldout.jsonl"):
        texts = [(tmp_path / name / file).read_bytes() for name in "abc"]
        assert texts[0] == texts[1] != texts[2]


def test_the_share_of_worked_answers(tmp_path):
    write_task(tmp_path, 1, sft_rows=100, worked_share=0.3)
    kinds = Counter(row["output"].split()[0] for row in read(tmp_path / "sft.jsonl"))
    assert kinds == {"first": 30, "it": 70}


def test_too_many_rows_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_task(tmp_path, 1, heldout_rows=100_000)
