"""Tokenizers small enough to build in memory, and a writer of JSON lines."""

import json

import pytest

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer():
    """Builds byte-level tokenizers; one merge, "ab", crosses borders of texts if it is let."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(*, chat_template=None, bos=False, eos=True):
        specials = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: index for index, token in enumerate([*specials, *alphabet, "ab"])}
        backend = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(specials)
        if bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<s>",
            eos_token="</s>" if eos else None,
            additional_special_tokens=specials[2:],
        )
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer(make_tokenizer):
    return make_tokenizer(chat_template=CHATML, bos=True)


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows as JSON lines and returns the specification that reads them."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return f"json@{path}"

    return write
