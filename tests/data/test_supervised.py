import pytest

from megarlhf.config.schema import SupervisedDataConfig
from megarlhf.data.stream import ShuffledStream
from megarlhf.data.supervised import load_supervised
from megarlhf.errors import UserError
from tests.data.rows import FirstSequences


def load(spec, tokenizer, **settings):
    rows = load_supervised(SupervisedDataConfig(train=spec, **settings), tokenizer)
    return FirstSequences(rows)


def parts(sequence, tokenizer):
    """The texts of what has no loss and of what has."""
    assert len(sequence.token_ids) == len(sequence.loss_mask)
    border = sequence.loss_mask.index(1.0)
    assert set(sequence.loss_mask[:border]) == {0.0}
    assert set(sequence.loss_mask[border:]) == {1.0}
    ids = sequence.token_ids
    return tokenizer.decode(ids[:border]), tokenizer.decode(ids[border:])


def answered(write_rows, tokenizer, source="in", target="out", **settings):
    (sequence,) = load(write_rows([{"input": source, "output": target}]), tokenizer, **settings)
    return parts(sequence, tokenizer)


def test_the_loss_is_on_the_output_and_its_eos(write_rows, tokenizer):
    assert answered(write_rows, tokenizer) == ("in", "out</s>")
    assert answered(write_rows, tokenizer, target="out</s>") == ("in", "out</s>")
    assert answered(write_rows, tokenizer, input_template="Q: {} A:") == ("Q: in A:", "out</s>")


def test_a_tokenizer_without_eos(write_rows, make_tokenizer):
    assert answered(write_rows, make_tokenizer(eos=False)) == ("in", "out")


def test_special_tokens_go_to_the_input_only(write_rows, make_tokenizer):
    assert answered(write_rows, make_tokenizer(bos=True)) == ("<s>in", "out</s>")


def test_no_token_spans_the_border(write_rows, tokenizer):
    assert len(tokenizer.encode("ab")) == 1
    assert answered(write_rows, tokenizer, source="a", target="b") == ("a", "b</s>")


def test_a_chat_template_ends_the_turn_itself(write_rows, chat_tokenizer):
    before, after = answered(write_rows, chat_tokenizer, apply_chat_template=True)
    assert before == "<|user|>in</s>\n<|assistant|>"
    assert after == "out</s>"  # the template's newline behind EOS is never sampled


OPEN = "{% if add_generation_prompt %}A:{% endif %}"


@pytest.mark.parametrize(
    ("end", "after"),
    [("<end>\n", "out<end>\n"), ("", "out</s>"), ("</s>", "out</s>"), ("\n", "out\n</s>")],
)
def test_other_ends_of_turn(write_rows, make_tokenizer, end, after):
    prefix = "{% if m.role == 'user' %}U:{% else %}A:{% endif %}"
    template = "{% for m in messages %}" + prefix + "{{ m.content }}" + end + "{% endfor %}" + OPEN
    tokenizer = make_tokenizer(chat_template=template)
    got = answered(write_rows, tokenizer, apply_chat_template=True)
    assert got == (f"U:in{end}A:", after)


def test_white_space_around_the_output_is_the_templates_business(write_rows, chat_tokenizer):
    settings = {"target": " o ut\n", "apply_chat_template": True}
    assert answered(write_rows, chat_tokenizer, **settings)[1] == "o ut</s>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}" + OPEN,  # no "A:" in the answered one
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}A:",  # no output
    ],
)
def test_a_template_that_loses_the_prompt_or_the_output(write_rows, make_tokenizer, template):
    with pytest.raises(UserError, match="otherwise than as the prompt") as caught:
        answered(write_rows, make_tokenizer(chat_template=template), apply_chat_template=True)
    assert caught.value.where.endswith("rows.jsonl:1")


@pytest.mark.parametrize("output", [None, 7, "", " \n"])
def test_bad_outputs(write_rows, tokenizer, output):
    with pytest.raises(UserError, match="not blank") as caught:
        answered(write_rows, tokenizer, target=output)
    assert caught.value.where.endswith("rows.jsonl:1")


def test_an_empty_input_has_nothing_to_predict_from(write_rows, tokenizer, make_tokenizer):
    with pytest.raises(UserError, match="the input has no tokens"):
        answered(write_rows, tokenizer, source="")
    assert answered(write_rows, make_tokenizer(bos=True), source="") == ("<s>", "out</s>")


def test_overlong_rows(write_rows, tokenizer, caplog):
    spec = write_rows([{"input": "12", "output": "34"}, {"input": "12", "output": "345"}])
    with pytest.raises(UserError, match=r"6 tokens are more than data\.max_tokens=5") as caught:
        load(spec, tokenizer, max_tokens=5)
    assert caught.value.where.endswith("rows.jsonl:2")
    with caplog.at_level("WARNING", logger="megarlhf"):
        assert len(load(spec, tokenizer, max_tokens=5, overlong_rows="drop")) == 1
    assert "dropped 1 of 2 rows" in caplog.text


def test_plain_text(write_rows, make_tokenizer):
    tokenizer = make_tokenizer(bos=True)
    spec = write_rows([{"input": "some text"}, {"input": "more</s>"}])
    first, second = load(spec, tokenizer, pretrain_mode=True)
    assert tokenizer.decode(first.token_ids) == "<s>some text</s>"
    assert first.loss_mask == [0.0] + [1.0] * 10
    assert tokenizer.decode(second.token_ids) == "<s>more</s>"
    with pytest.raises(UserError, match="single token"):
        load(write_rows([{"input": "x"}]), make_tokenizer(eos=False), pretrain_mode=True)
    with pytest.raises(UserError, match="the input must be a string that is not blank"):
        load(write_rows([{"input": None}]), tokenizer, pretrain_mode=True)


def test_rewards_in_the_prompt(write_rows, tokenizer, chat_tokenizer):
    rows = [{"input": "1+1=", "output": "2", "reward": 0.987}]
    settings = {"reward_key": "reward"}
    (sequence,) = load(write_rows(rows), tokenizer, **settings)
    assert parts(sequence, tokenizer) == ("1+1= <rm_score>: 0.99 ", "2</s>")
    settings["reward_template"] = "[{reward}] {input}"
    (sequence,) = load(write_rows(rows), tokenizer, input_template="Q {}", **settings)
    assert parts(sequence, tokenizer) == ("Q [0.99] 1+1=", "2</s>")
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "{reward}?"}]
    spec = write_rows([{**rows[0], "input": turns}])
    (sequence,) = load(spec, chat_tokenizer, apply_chat_template=True, **settings)
    assert parts(sequence, chat_tokenizer)[0] == (
        "<|system|>s</s>\n<|user|>[0.99] {reward}?</s>\n<|assistant|>"
    )
    for reward in ("high", None, True):
        with pytest.raises(UserError, match="the reward must be a finite number"):
            load(write_rows([{**rows[0], "reward": reward}]), tokenizer, **settings)


def test_gsm8k_streams(shared_data, tokenizer):
    spec = f"json@{shared_data}/gsm8k_train.jsonl"
    settings = {"input_key": "question", "output_key": "answer", "max_samples": 300}
    sequences = load(spec, tokenizer, **settings)
    assert parts(sequences[0], tokenizer)[1].endswith("#### 72</s>")
    stream = ShuffledStream(sequences, seed=1)
    stream.next_batch(250)
    restored = ShuffledStream(load(spec, tokenizer, **settings), seed=1)
    restored.load_state_dict(stream.state_dict())
    assert restored.next_batch(100) == stream.next_batch(100)
