import json

import pytest

from megarlhf.config.schema import PromptDataConfig
from megarlhf.data.prompts import PromptStream, load_prompts
from megarlhf.data.records import Prompt
from megarlhf.data.templates import InputTemplate
from megarlhf.errors import UserError


def load(spec, tokenizer, **settings):
    return load_prompts(PromptDataConfig(**settings), spec, tokenizer)


def test_the_raw_string_is_the_default(write_rows, tokenizer):
    prompts = load(write_rows([{"prompt": "{} ab"}, {"prompt": "b"}]), tokenizer)
    assert [prompt.text for prompt in prompts] == ["{} ab", "b"]
    assert tokenizer.decode(list(prompts[0].token_ids)) == "{} ab"
    assert [prompt.index for prompt in prompts] == [0, 1]
    assert prompts[0].label is None


def test_input_template_and_label(write_rows, tokenizer):
    spec = write_rows([{"q": "1+{x}?", "a": 3}])
    (prompt,) = load(spec, tokenizer, input_key="q", label_key="a", input_template="Put {it} in {}")
    assert prompt.text == "Put {it} in 1+{x}?"
    assert prompt.label == 3


def test_only_raw_text_gets_the_tokenizers_special_tokens(write_rows, chat_tokenizer):
    spec = write_rows([{"prompt": "hi"}])
    (raw,) = load(spec, chat_tokenizer)
    assert chat_tokenizer.decode(list(raw.token_ids)) == "<s>hi"
    (chat,) = load(spec, chat_tokenizer, apply_chat_template=True)
    assert chat.text == "<|user|>hi</s>\n<|assistant|>"
    assert chat_tokenizer.decode(list(chat.token_ids)) == chat.text


def test_a_conversation_goes_through_the_chat_template(write_rows, chat_tokenizer):
    turns = [("system", "Be brief."), ("user", "hi"), ("assistant", "ho"), ("user", "so?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    spec = write_rows([{"prompt": messages}])
    (prompt,) = load(spec, chat_tokenizer, apply_chat_template=True)
    assert prompt.text == "".join(f"<|{r}|>{c}</s>\n" for r, c in turns) + "<|assistant|>"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "a string or a list of messages"),
        ([], "a string or a list of messages"),
        ([{"role": "user"}], "a string or a list of messages"),
        ([{"role": "user", "content": None}], "a string or a list of messages"),
        (["hi"], "a string or a list of messages"),
        ([{"role": "assistant", "content": "ho"}], "nothing to answer"),
    ],
)
def test_bad_messages(write_rows, chat_tokenizer, value, message):
    spec = write_rows([{"prompt": "fine"}, {"prompt": value}])
    with pytest.raises(UserError, match=message) as caught:
        load(spec, chat_tokenizer, apply_chat_template=True)
    assert caught.value.where.endswith("rows.jsonl:2")


def test_a_template_that_refuses(write_rows, make_tokenizer):
    strict = make_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="refuses the messages: roles must alternate"):
        load(write_rows([{"prompt": "hi"}]), strict, apply_chat_template=True)


def test_inputs_without_a_chat_template_are_strings(write_rows, tokenizer):
    spec = write_rows([{"prompt": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(UserError, match="must be a string, not list") as caught:
        load(spec, tokenizer)
    assert "apply_chat_template" in str(caught.value)


def test_mixed_and_held_out_prompts(write_rows, tokenizer):
    one = write_rows([{"prompt": "a"}, {"prompt": "b"}], "one.jsonl")
    two = write_rows([{"prompt": "c"}], "two.jsonl")
    settings = {"probabilities": (0.5, 0.5), "mixing": "all_exhausted"}
    mixed = load(f"{one},{two}", tokenizer, **settings)
    assert [prompt.text for prompt in mixed] == ["a", "c", "b"]
    config = PromptDataConfig(**settings)
    assert len(load_prompts(config, one, tokenizer, held_out=True)) == 2
    with pytest.raises(UserError, match="2 probabilities for 1 sources"):
        load(one, tokenizer, **settings)


def test_bad_templates(tokenizer, chat_tokenizer):
    with pytest.raises(UserError, match="has no chat template"):
        InputTemplate(tokenizer, apply_chat_template=True)
    with pytest.raises(UserError, match="exclude each other"):
        InputTemplate(chat_tokenizer, apply_chat_template=True, input_template="{}")
    for text in ("no slot", "{} and {}"):
        with pytest.raises(UserError, match="input_template"):
            InputTemplate(tokenizer, input_template=text)


def test_overlong_and_empty_prompts(write_rows, tokenizer, caplog):
    spec = write_rows([{"prompt": "12345"}, {"prompt": "123456"}, {"prompt": "12"}])
    with pytest.raises(UserError) as caught:
        load(spec, tokenizer, max_prompt_tokens=5)
    assert "6 tokens are more than data.max_prompt_tokens=5" in caught.value.what
    assert caught.value.where.endswith("rows.jsonl:2")
    with caplog.at_level("WARNING", logger="megarlhf"):
        prompts = load(spec, tokenizer, max_prompt_tokens=5, overlong_prompts="drop")
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "12345"), (2, "12")]
    assert "dropped 1 of 3 rows" in caplog.text
    with pytest.raises(UserError, match="no tokens"):
        load(write_rows([{"prompt": ""}]), tokenizer)


def numbered(count):
    return [Prompt(index=i, text=str(i), token_ids=(i, i + 1)) for i in range(count)]


def drawn(stream, batches, n):
    return [[prompt.index for prompt in stream.next_batch(n)] for _ in range(batches)]


def test_every_epoch_holds_each_prompt_once_in_an_order_of_its_own():
    stream = PromptStream(numbered(10), seed=3)
    indices = [index for batch in drawn(stream, 10, 3) for index in batch]
    epochs = [indices[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert (stream.epoch, stream.position) == (3, 0)


def test_the_order_is_the_same_on_every_machine():
    assert drawn(PromptStream(numbered(8), seed=1), 1, 8) == [[3, 5, 7, 1, 0, 6, 2, 4]]
    assert drawn(PromptStream(numbered(4), seed=1, shuffle=False), 2, 3) == [[0, 1, 2], [3, 0, 1]]


def test_a_batch_may_span_several_epochs():
    (batch,) = drawn(PromptStream(numbered(2), seed=1), 1, 7)
    assert sorted(batch) in ([0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1])


def test_steps_for():
    stream = PromptStream(numbered(10), seed=1)
    assert [stream.steps_for(1, n) for n in (1, 3, 5, 10, 11)] == [10, 4, 2, 1, 1]
    assert stream.steps_for(3, 4) == 8


def test_a_restored_stream_goes_on_where_it_stood():
    stream = PromptStream(numbered(7), seed=5)
    drawn(stream, 4, 3)
    state = json.loads(json.dumps(stream.state_dict()))
    rest = drawn(stream, 5, 3)
    restored = PromptStream(numbered(7), seed=5)
    restored.load_state_dict(state)
    assert drawn(restored, 5, 3) == rest


def test_a_state_of_other_data_is_refused():
    state = PromptStream(numbered(7), seed=5).state_dict()
    changed = numbered(7)
    changed[3] = Prompt(index=3, text="", token_ids=(3,))
    for stream, key in [
        (PromptStream(numbered(8), seed=5), "items"),
        (PromptStream(changed, seed=5), "token_hash"),
        (PromptStream(numbered(7), seed=6), "seed"),
        (PromptStream(numbered(7), seed=5, shuffle=False), "shuffle"),
    ]:
        with pytest.raises(UserError, match=f"its {key} is"):
            stream.load_state_dict(state)


def test_streams_and_batches_are_not_empty():
    with pytest.raises(ValueError, match="at least one item"):
        PromptStream([], seed=1)
    with pytest.raises(ValueError, match="not 0"):
        PromptStream(numbered(1), seed=1).next_batch(0)


def test_gsm8k(shared_data, tokenizer):
    prompts = load(
        f"json@{shared_data}/gsm8k_train.jsonl",
        tokenizer,
        input_key="question",
        label_key="answer",
        input_template="Question: {}\nAnswer:",
        max_samples=500,
    )
    assert len(prompts) == 500
    assert all(tokenizer.decode(list(prompt.token_ids)) == prompt.text for prompt in prompts)
