import json

import pytest

from megarlhf.config.schema import PreferenceDataConfig
from megarlhf.data.batches import ExampleStream, batch_of
from megarlhf.data.preference import load_preferences
from megarlhf.errors import UserError

ROW = {"prompt": "1+1=", "chosen": "2", "rejected": "three"}


def load(spec, tokenizer, **settings):
    return load_preferences(PreferenceDataConfig(train=spec, **settings), tokenizer)


def texts(example, tokenizer):
    """Of each sequence the texts of what has no loss and of what has."""
    found = []
    for sequence in example.sequences:
        border = sequence.loss_mask.index(1.0)
        assert set(sequence.loss_mask[border:]) == {1.0}
        ids = sequence.token_ids
        found.append((tokenizer.decode(ids[:border]), tokenizer.decode(ids[border:])))
    return found


def test_two_answers_to_one_prompt(write_rows, tokenizer):
    (example,) = load(write_rows([ROW]), tokenizer)
    assert texts(example, tokenizer) == [("1+1=", "2</s>"), ("1+1=", "three</s>")]
    assert example.prompt_tokens == 4
    (example,) = load(write_rows([ROW]), tokenizer, input_template="Q {}")
    assert texts(example, tokenizer)[1] == ("Q 1+1=", "three</s>")


def test_answers_as_turns(write_rows, chat_tokenizer):
    (example,) = load(write_rows([ROW]), chat_tokenizer, apply_chat_template=True)
    prompt = "<|user|>1+1=</s>\n<|assistant|>"
    assert texts(example, chat_tokenizer) == [(prompt, "2</s>"), (prompt, "three</s>")]
    turn = {
        "prompt": [{"role": "user", "content": "1+1="}],
        "chosen": [{"role": "assistant", "content": "2"}],
        "rejected": [{"role": "assistant", "content": "three"}],
    }
    (same,) = load(write_rows([turn]), chat_tokenizer, apply_chat_template=True)
    assert same == example
    whole = {name: turn["prompt"] + turn[name] for name in ("chosen", "rejected")}
    settings = {"apply_chat_template": True, "prompt_key": None}
    (same,) = load(write_rows([whole]), chat_tokenizer, **settings)
    assert same == example
    whole["rejected"] = [{"role": "user", "content": "1+2="}, *turn["rejected"]]
    with pytest.raises(UserError, match="answer different prompts"):
        load(write_rows([whole]), chat_tokenizer, **settings)
    for wrong in ("three", turn["prompt"]):
        row = {"chosen": whole["chosen"], "rejected": wrong}
        with pytest.raises(UserError, match="rejected must be a conversation that ends with"):
            load(write_rows([row]), chat_tokenizer, **settings)


def test_whole_texts(write_rows, tokenizer):
    (example,) = load(write_rows([ROW]), tokenizer, prompt_key=None)
    chosen, rejected = example.sequences
    assert tokenizer.decode(rejected.token_ids) == "three</s>"
    assert rejected.loss_mask == [0.0] + [1.0] * 5
    assert example.prompt_tokens == 0
    assert len(chosen.token_ids) == 2


def test_a_batch_of_pairs(write_rows, tokenizer):
    rows = [{**ROW, "prompt": f"{n}", "margin": n / 2} for n in range(3)]
    examples = load(write_rows(rows), tokenizer, margin_key="margin")
    batch = batch_of(ExampleStream(examples, seed=1, shuffle=False).next_batch(3))
    assert batch.groups == [(0, 1), (2, 3), (4, 5)]
    for pair, (chosen, rejected) in enumerate(batch.groups):
        assert tokenizer.decode(batch.sequences[chosen].token_ids) == f"{pair}2</s>"
        assert tokenizer.decode(batch.sequences[rejected].token_ids) == f"{pair}three</s>"
        for position in (chosen, rejected):
            assert batch.sequences[position].values == {"margin": pair / 2}
    assert batch_of(list(load(write_rows(rows), tokenizer))).sequences[0].values == {}


def test_equal_answers_are_skipped_and_counted(write_rows, tokenizer, caplog):
    equal = {**ROW, "rejected": "2"}
    with caplog.at_level("WARNING", logger="megarlhf"):
        examples = load(write_rows([ROW, equal, equal]), tokenizer)
    assert len(examples) == 1
    assert "dropped 2 of 3 rows: chosen equals rejected (first: " in caplog.text
    assert examples.report.dropped["chosen equals rejected"].where.endswith("rows.jsonl:2")
    with pytest.raises(UserError, match=r"no row is left: .*chosen equals rejected"):
        load(write_rows([equal]), tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "the chosen must be a string that is not blank, not None"),
        ({"rejected": " "}, "the rejected must be a string"),
        ({"margin": "big"}, "the margin must be a finite number, not 'big'"),
        ({"margin": True}, "the margin must be a finite number, not True"),
        ({"margin": float("nan")}, "finite"),
        ({"prompt": 3}, "the input must be a string"),
    ],
)
def test_bad_rows(write_rows, tokenizer, change, message):
    spec = write_rows([{**ROW, "margin": 1}, {**ROW, "margin": 1, **change}])
    with pytest.raises(UserError, match=message) as caught:
        load(spec, tokenizer, margin_key="margin")
    assert caught.value.where.endswith("rows.jsonl:2")


def test_missing_keys(write_rows, tokenizer):
    with pytest.raises(UserError, match="no key 'margin'; it has 'prompt', 'chosen', 'rejected'"):
        load(write_rows([ROW]), tokenizer, margin_key="margin")


def test_gsm8k_pairs(shared_data, write_rows, tokenizer):
    rows = []
    for line in (shared_data / "gsm8k_model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        solutions = [value for value in row.values() if isinstance(value, dict)]
        right = [s["solution"] for s in solutions if s["is_correct"]]
        wrong = [s["solution"] for s in solutions if not s["is_correct"]]
        if right and wrong:
            rows.append({"prompt": row["question"], "chosen": right[0], "rejected": wrong[0]})
    settings = {"max_tokens": 1000, "overlong_rows": "drop"}
    examples = load(write_rows(rows), tokenizer, **settings)
    report = examples.report
    assert report.rows == len(rows)
    assert report.kept + sum(found.count for found in report.dropped.values()) == len(rows)
    assert len(examples) > 0.8 * len(rows)
    (first_prompt, chosen), (second_prompt, rejected) = texts(examples[0], tokenizer)
    assert (first_prompt, chosen) == (rows[0]["prompt"], rows[0]["chosen"] + "</s>")
    assert (second_prompt, rejected) == (rows[0]["prompt"], rows[0]["rejected"] + "</s>")
