import json

import pytest

from megarlhf.config.schema import UnpairedDataConfig
from megarlhf.data.batches import batch_of, mismatched
from megarlhf.data.unpaired import load_unpaired
from megarlhf.errors import UserError


def load(spec, tokenizer, **settings):
    return load_unpaired(UnpairedDataConfig(train=spec, **settings), tokenizer)


def three(write_rows):
    return write_rows(
        [
            {"prompt": f"q{n}", "completion": f"answer{n}", "label": label}
            for n, label in enumerate((True, False, 1))
        ]
    )


def test_rows(write_rows, tokenizer):
    examples = load(three(write_rows), tokenizer)
    assert [example.values for example in examples] == [
        {"desirable": 1.0},
        {"desirable": 0.0},
        {"desirable": 1.0},
    ]
    (sequence,) = examples[1].sequences
    assert tokenizer.decode(sequence.token_ids) == "q1answer1</s>"
    assert sequence.loss_mask == [0.0] * 2 + [1.0] * 8


def test_a_batch_of_answers(write_rows, tokenizer):
    examples = list(load(three(write_rows), tokenizer))
    batch = batch_of(examples)
    assert batch.groups == [(0,), (1,), (2,)]
    assert [sequence.values["desirable"] for sequence in batch.sequences] == [1.0, 0.0, 1.0]


def test_mismatched_pairs(write_rows, tokenizer):
    examples = list(load(three(write_rows), tokenizer))
    sequences = mismatched(examples, max_tokens=100)
    decoded = [tokenizer.decode(sequence.token_ids) for sequence in sequences]
    assert decoded == ["q1answer0</s>", "q2answer1</s>", "q0answer2</s>"]
    assert all(sequence.loss_mask == [0.0] * 2 + [1.0] * 8 for sequence in sequences)


def test_mismatched_pairs_keep_within_the_limit(write_rows, tokenizer):
    rows = [
        {"prompt": "12345", "completion": "1", "label": True},
        {"prompt": "1", "completion": "12345", "label": True},
    ]
    examples = list(load(write_rows(rows), tokenizer, max_tokens=7))
    sequences = mismatched(examples, max_tokens=7)
    decoded = [tokenizer.decode(sequence.token_ids) for sequence in sequences]
    assert decoded == ["11</s>", "1234512"]
    with pytest.raises(ValueError, match="at least two rows"):
        mismatched(examples[:1], max_tokens=7)


@pytest.mark.parametrize("label", ["true", None, 2, 0.5, []])
def test_labels_of_the_wrong_type(write_rows, tokenizer, label):
    good = {"prompt": "q", "completion": "a", "label": False}
    with pytest.raises(UserError, match="the label must be true or false") as caught:
        load(write_rows([good, {**good, "label": label}]), tokenizer)
    assert caught.value.where.endswith("rows.jsonl:2")


def test_gsm8k_labels(shared_data, write_rows, tokenizer):
    rows = []
    for line in (shared_data / "gsm8k_model_solutions.jsonl").read_text().splitlines()[:300]:
        row = json.loads(line)
        rows += [
            {"prompt": row["question"], "completion": s["solution"], "label": s["is_correct"]}
            for s in row.values()
            if isinstance(s, dict)
        ]
    examples = load(write_rows(rows), tokenizer, max_tokens=3000)
    labels = [example.values["desirable"] for example in examples]
    assert sum(labels) == sum(row["label"] for row in rows)
    assert len(mismatched(examples[:64], max_tokens=1000)) == 64
