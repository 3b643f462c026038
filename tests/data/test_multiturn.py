import pytest

from megarlhf.config.schema import SupervisedDataConfig
from megarlhf.data.supervised import load_supervised
from megarlhf.errors import UserError
from tests.data.rows import FirstSequences

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho", "train": False},
    {"role": "user", "content": "so?"},
    {"role": "assistant", "content": "no", "train": True},
    {"role": "user", "content": "bye"},
]


def load(write_rows, tokenizer, *conversations, **settings):
    spec = write_rows([{"messages": messages} for messages in conversations])
    settings = {"input_key": "messages", "output_key": None, **settings}
    config = SupervisedDataConfig(train=spec, apply_chat_template=True, **settings)
    return FirstSequences(load_supervised(config, tokenizer))


def runs(sequence, tokenizer):
    """The text in pieces with and without loss, [(text, mask), ...]."""
    assert len(sequence.token_ids) == len(sequence.loss_mask)
    pieces = []
    for token, mask in zip(sequence.token_ids, sequence.loss_mask, strict=True):
        if not pieces or pieces[-1][1] != mask:
            pieces.append(([], mask))
        pieces[-1][0].append(token)
    return [(tokenizer.decode(ids), mask) for ids, mask in pieces]


def learned(sequence, tokenizer):
    return [text for text, mask in runs(sequence, tokenizer) if mask == 1.0]


def test_all_turns_of_the_assistant_with_their_ends(write_rows, chat_tokenizer):
    (sequence,) = load(write_rows, chat_tokenizer, DIALOGUE)
    assert runs(sequence, chat_tokenizer) == [
        ("<|system|>Be brief.</s>\n<|user|>hi</s>\n<|assistant|>", 0.0),
        ("ho</s>", 1.0),
        ("\n<|user|>so?</s>\n<|assistant|>", 0.0),
        ("no</s>", 1.0),  # and nothing of the turn after it
    ]


@pytest.mark.parametrize("turns", ["last", "marked"])
def test_chosen_turns(write_rows, chat_tokenizer, turns):
    (sequence,) = load(write_rows, chat_tokenizer, DIALOGUE, turns=turns)
    (before, after) = runs(sequence, chat_tokenizer)
    assert after == ("no</s>", 1.0)
    assert before[0].endswith("<|assistant|>ho</s>\n<|user|>so?</s>\n<|assistant|>")


def test_a_template_without_ends_of_turns(write_rows, make_tokenizer):
    text = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    tokenizer = make_tokenizer(chat_template=text + "{% if add_generation_prompt %}a:{% endif %}")
    (sequence,) = load(write_rows, tokenizer, DIALOGUE)
    assert learned(sequence, tokenizer) == ["ho;", "no;"]
    bare = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% endfor %}"
    tokenizer = make_tokenizer(chat_template=bare + "{% if add_generation_prompt %}a:{% endif %}")
    (sequence,) = load(write_rows, tokenizer, DIALOGUE[:5])
    assert learned(sequence, tokenizer) == ["ho", "no</s>"]  # only the conversation's end is one


def test_a_conversation_without_a_turn_to_learn_is_skipped_and_counted(
    write_rows, chat_tokenizer, caplog
):
    unmarked = [message for message in DIALOGUE if not message.get("train")]
    unmarked = [*unmarked[:3], *unmarked[4:]]
    with caplog.at_level("WARNING", logger="megarlhf"):
        rows = load(write_rows, chat_tokenizer, unmarked, DIALOGUE, turns="marked")
    assert len(rows) == 1
    assert "dropped 1 of 2 rows: no turn of the assistant to train on" in caplog.text
    with pytest.raises(UserError, match="no row is left: dropped 1 of 1 rows: no turn"):
        load(write_rows, chat_tokenizer, DIALOGUE[:2])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["user", "user"], r"message 2 \(user\) follows user"),
        (["assistant"], r"message 1 \(assistant\) follows the start"),
        (["user", "assistant", "assistant"], r"message 3 \(assistant\) follows assistant"),
        (["user", "system", "assistant"], r"message 2 \(system\) follows user"),
        (["user", "tool"], r"message 2 \(tool\) follows user"),
        (["user", "gpt"], "message 2 has the unknown role 'gpt'"),
    ],
)
def test_roles_out_of_order(write_rows, chat_tokenizer, roles, message):
    wrong = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(UserError, match=message) as caught:
        load(write_rows, chat_tokenizer, DIALOGUE, wrong)
    assert caught.value.where.endswith("rows.jsonl:2")
    assert caught.value.fix


def test_tools_may_answer_the_assistant(write_rows, chat_tokenizer):
    roles = ["developer", "user", "assistant", "tool", "tool", "assistant"]
    messages = [{"role": role, "content": role} for role in roles]
    (sequence,) = load(write_rows, chat_tokenizer, messages)
    assert learned(sequence, chat_tokenizer) == ["assistant</s>"] * 2


def test_no_conversation_and_no_mark(write_rows, chat_tokenizer):
    with pytest.raises(UserError, match="must be a list of messages, not 'hi'"):
        load(write_rows, chat_tokenizer, "hi")
    marked = [DIALOGUE[1], {**DIALOGUE[2], "train": 1}]
    with pytest.raises(UserError, match='"train" of a message must be true or false, not 1'):
        load(write_rows, chat_tokenizer, marked, turns="marked")


def test_a_template_that_changes_what_it_wrote(write_rows, make_tokenizer):
    kept = "{% if m.role == 'user' or loop.last %}{{ m.role }}:{{ m.content }}</s>{% endif %}"
    text = "{% for m in messages %}" + kept + "{% endfor %}"
    tokenizer = make_tokenizer(
        chat_template=text + "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(UserError, match="writes earlier turns otherwise") as caught:
        load(write_rows, tokenizer, DIALOGUE[1:5])
    assert "data.turns=last" in caught.value.fix


def test_a_template_of_ones_own(write_rows, tokenizer, tmp_path):
    own = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    (sequence,) = load(write_rows, tokenizer, DIALOGUE[1:3], tokenizer_chat_template=own)
    assert runs(sequence, tokenizer) == [("hi|", 0.0), ("ho|", 1.0)]
    file = tmp_path / "own.jinja"
    file.write_text(own)
    (same,) = load(write_rows, tokenizer, DIALOGUE[1:3], tokenizer_chat_template=str(file))
    assert same == sequence
    assert not tokenizer.chat_template
    with pytest.raises(UserError, match="neither a chat template nor a file") as caught:
        load(write_rows, tokenizer, DIALOGUE[1:3], tokenizer_chat_template="no/such.jinja")
    assert caught.value.where == "data.tokenizer_chat_template"
    with pytest.raises(UserError, match="has no chat template"):
        load(write_rows, tokenizer, DIALOGUE[1:3])
