import json

import pytest

from megarlhf.config.schema import StepDataConfig
from megarlhf.data.batches import batch_of
from megarlhf.data.packing import collate
from megarlhf.data.steps import load_steps
from megarlhf.errors import UserError

ROW = {"prompt": "1+2+3?", "completions": ["1+2=3", "3+3=7"], "labels": [True, False]}


def load(spec, tokenizer, **settings):
    return load_steps(StepDataConfig(train=spec, **settings), tokenizer)


def judged(example, tokenizer):
    """The text up to each step token, and its label."""
    (sequence,) = example.sequences
    assert sequence.loss_mask[0] == 0.0
    return [
        (tokenizer.decode(sequence.token_ids[:place]), sequence.fields["labels"][place])
        for place, mask in enumerate(sequence.loss_mask)
        if mask
    ]


def test_a_list_of_steps(write_rows, tokenizer):
    (example,) = load(write_rows([ROW]), tokenizer)
    assert tokenizer.decode(example.sequences[0].token_ids) == "1+2+3?1+2=3\n3+3=7\n</s>"
    assert judged(example, tokenizer) == [
        ("1+2+3?1+2=3\n", 1.0),
        ("1+2+3?1+2=3\n3+3=7\n", 0.0),
    ]
    assert example.prompt_tokens == 6


def test_a_text_with_step_tokens(write_rows, tokenizer):
    row = {"steps": "Q: 1+2?<|user|>3<|user|>so 3", "labels": ["+", 0.25]}
    settings = {"input_key": None, "steps_key": "steps", "step_token": "<|user|>"}
    (example,) = load(write_rows([row]), tokenizer, **settings)
    assert judged(example, tokenizer) == [
        ("Q: 1+2?<|user|>", 1.0),
        ("Q: 1+2?<|user|>3<|user|>", 0.25),
    ]
    assert tokenizer.decode(example.sequences[0].token_ids).endswith("<|user|>so 3")


def test_a_packed_batch_has_the_labels_at_the_step_tokens(write_rows, tokenizer):
    examples = list(load(write_rows([ROW, {**ROW, "labels": [0.5, 1]}]), tokenizer))
    batch = batch_of(examples)
    assert batch.groups == [(0,), (1,)]
    packed = collate(batch.sequences, [0, 1])
    (newline,) = tokenizer.encode("\n")
    assert (packed.token_ids == newline).tolist() == packed.loss_mask.bool().tolist()
    assert packed.fields["labels"][packed.loss_mask.bool()].tolist() == [1.0, 0.0, 0.5, 1.0]


def test_without_eos_the_step_token_comes_once_more(write_rows, make_tokenizer):
    tokenizer = make_tokenizer(eos=False)
    (example,) = load(write_rows([ROW]), tokenizer)
    assert tokenizer.decode(example.sequences[0].token_ids).endswith("7\n\n")
    assert len(judged(example, tokenizer)) == 2


def test_steps_beyond_the_limit_are_cut(write_rows, tokenizer):
    (example,) = load(write_rows([ROW]), tokenizer, max_tokens=15, overlong_rows="truncate_right")
    assert judged(example, tokenizer) == [("1+2+3?1+2=3\n", 1.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [True]}, "one for each of the 2 steps, not 1"),
        ({"labels": True}, "must be a list, one for each of the 2 steps, not True"),
        ({"labels": [True, "yes"]}, "a step's label must be .*, not 'yes'"),
        ({"labels": [True, 1.5]}, "a step's label must be .*, not 1.5"),
        ({"labels": [True, None]}, "a step's label must be .*, not None"),
        ({"completions": []}, "a text or a list of texts"),
        ({"completions": ["a", 2]}, "a text or a list of texts"),
        ({"completions": "no step ends here"}, "there are no steps: '.n' does not occur"),
    ],
)
def test_bad_steps(write_rows, tokenizer, change, message):
    with pytest.raises(UserError, match=message) as caught:
        load(write_rows([ROW, {**ROW, **change}]), tokenizer)
    assert caught.value.where.endswith("rows.jsonl:2")
    assert caught.value.fix


def test_a_step_token_is_one_token(write_rows, tokenizer):
    with pytest.raises(UserError, match="makes 2 tokens of 'xy'") as caught:
        load(write_rows([ROW]), tokenizer, step_token="xy")
    assert caught.value.where == "data.step_token"


def test_gsm8k_steps(shared_data, write_rows, tokenizer):
    rows = []
    for line in (shared_data / "gsm8k_model_solutions.jsonl").read_text().splitlines()[:300]:
        row = json.loads(line)
        for solution in (value for value in row.values() if isinstance(value, dict)):
            steps = solution["solution"].splitlines()
            labels = [solution["is_correct"]] * len(steps)
            rows.append({"prompt": row["question"], "completions": steps, "labels": labels})
    examples = load(write_rows(rows), tokenizer, max_tokens=3000)
    assert len(examples) == len(rows)
    assert examples.report.trained_tokens == sum(len(row["labels"]) for row in rows)
    assert len(judged(examples[7], tokenizer)) == len(rows[7]["labels"])
