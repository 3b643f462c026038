"""A model with a scalar head is read by Hugging Face where it was trained: at the last token."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from megarlhf.demo.model import BOS, EOS, make_model
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.companions import copy_companions, write_config
from megarlhf.models.weights.padding import settle_padding


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    make_model(directory, seed=7)  # its tokenizer pads with EOS
    return directory


def test_hugging_face_reads_the_score_at_the_end_of_padded_sequences(model, tmp_path):
    spec = ModelSpec.read(model, scalar_head="score")
    copy_companions(spec, tmp_path)
    write_config(spec, tmp_path, torch.float32)  # as a conversion: nothing changes
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"] == EOS
    write_config(spec, tmp_path, torch.float32, is_trained=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token == BOS
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pad_token_id"] == tokenizer.pad_token_id
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path))
    scorer.eval()
    texts = [f"what is one{EOS}", f"one plus two is three{EOS}"]
    for side in ("right", "left"):
        batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        with torch.no_grad():
            found = scorer(**batch).logits.flatten()
            for text, score in zip(texts, found, strict=True):
                hidden = scorer.model(**tokenizer(text, return_tensors="pt")).last_hidden_state
                # The attention of padded rows sums in another order: seen 1e-7.
                assert scorer.score(hidden)[0, -1].item() == pytest.approx(score.item(), abs=1e-5)


@pytest.fixture
def directory(tmp_path):
    """Makes one of a tokenizer with some special tokens, ids from 10."""

    def directory(special, **settings):
        shutil.rmtree(tmp_path / "tokenizer", ignore_errors=True)
        (tmp_path / "tokenizer").mkdir()
        tokens = [
            {"content": text, "id": 10 + n, "special": True} for n, text in enumerate(special)
        ]
        text = json.dumps({"added_tokens": tokens})
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(text)
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
        return tmp_path / "tokenizer"

    return directory


@pytest.mark.parametrize(
    ("special", "settings", "chosen"),
    [
        (["<s>", "</s>", "<x>"], {"pad_token": "<x>"}, "<x>"),  # its own stays
        (["<s>", "</s>", "<pad_0>"], {"pad_token": "</s>", "bos_token": "<s>"}, "<pad_0>"),
        (["<s>", "</s>", "<?>"], {"bos_token": "<s>", "unk_token": {"content": "<?>"}}, "<?>"),
        (["</s>", "<a>", "<b>"], {"chat_template": "{{ 'x' }}<a>"}, "<b>"),
        (["</s>", "<a>"], {"chat_template": "<a>"}, None),
    ],
)
def test_which_token_is_chosen(directory, special, settings, chosen):
    place = directory(special, eos_token="</s>", **settings)
    found = settle_padding(place, {"vocab_size": 20, "eos_token_id": 2})
    assert found == (None if chosen is None else 10 + special.index(chosen))
    if chosen is not None:
        written = json.loads((place / "tokenizer_config.json").read_text())
        assert written["pad_token"] == chosen


def test_a_token_that_has_no_embedding_is_not_chosen(directory):
    place = directory(["</s>", "<s>", "<pad>"], eos_token="</s>", bos_token="<s>")
    assert settle_padding(place, {"vocab_size": 12, "eos_token_id": 10}) == 11


def test_a_model_without_a_tokenizer(tmp_path):
    assert settle_padding(tmp_path, {"pad_token_id": 3, "eos_token_id": [1, 2]}) == 3
    assert settle_padding(tmp_path, {"pad_token_id": 2, "eos_token_id": [1, 2]}) is None
