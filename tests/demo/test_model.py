import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megarlhf.config.schema import PromptDataConfig, SupervisedDataConfig
from megarlhf.data.prompts import load_prompts
from megarlhf.data.supervised import load_supervised
from megarlhf.demo.model import make_model
from megarlhf.demo.task import draw_sums, write_task
from tests.data.rows import FirstSequences


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")
    make_model(path / "model", seed=1)
    write_task(path, seed=1, sft_rows=64, rl_rows=16, heldout_rows=16)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "model")


def test_a_word_is_a_token_and_any_text_survives(tokenizer):
    for drawn in draw_sums("any", 50, held_out=True):
        for text in (drawn.question, drawn.solution, drawn.off_hand):
            words = text.replace(",", " ,").replace(".", " .").replace("?", " ?").split()
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(words)
            assert tokenizer.decode(ids) == text
    for text in ("Ünïcödé ☃ 42\n\tx , y .", " two  spaces"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_data_layer_reads_prompts(folder, tokenizer):
    config = PromptDataConfig(
        prompts=f"json@{folder}/rl_train.jsonl",
        input_key="question",
        label_key="label",
        apply_chat_template=True,
    )
    prompts = load_prompts(config, config.prompts, tokenizer)
    assert len(prompts) == 16
    for prompt in prompts:
        assert prompt.text.startswith("<s><|user|>what is ")
        assert prompt.text.endswith("?<|assistant|>")
        assert prompt.token_ids.count(tokenizer.bos_token_id) == 1
        assert len(prompt.token_ids) == 13


def test_the_data_layer_reads_supervised_rows(folder, tokenizer):
    config = SupervisedDataConfig(train=f"json@{folder}/sft.jsonl", apply_chat_template=True)
    rows = FirstSequences(load_supervised(config, tokenizer))
    assert len(rows) == 64
    for row in rows:
        output = [
            token for token, mask in zip(row.token_ids, row.loss_mask, strict=True) if mask > 0
        ]
        assert output[-1] == tokenizer.eos_token_id
        assert len(output) in (5, 20)


def test_the_model_is_small_and_fits_two_ranks(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    config = model.config
    assert model.dtype == torch.float32
    assert 0.5e6 < model.num_parameters() < 3e6
    assert config.num_attention_heads % 2 == config.num_key_value_heads % 2 == 0
    assert config.vocab_size == len(tokenizer)
    assert not config.tie_word_embeddings
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_same_seed_makes_the_same_files(folder, tmp_path):
    state = torch.random.get_rng_state()
    for name, seed in (("again", 1), ("other", 2)):
        make_model(tmp_path / name, seed)
    assert torch.equal(state, torch.random.get_rng_state())
    for file in (folder / "model").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    weights = [
        (path / "model.safetensors").read_bytes() for path in (folder / "model", tmp_path / "other")
    ]
    assert weights[0] != weights[1]
