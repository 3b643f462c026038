import pytest

from megarlhf.config import loader
from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError
from megarlhf.trainer.rl_inputs import load_tokenizer, prepare
from tests.trainer.tiny_run import ROWS, write_config, write_rows, write_run, write_weights


@pytest.fixture
def right(tmp_path):
    return write_run(tmp_path)


def read(right, *overrides):
    return prepare(loader.load(RLConfig, None, [*right, *overrides]))


def refused(right, *overrides) -> UserError:
    with pytest.raises(UserError) as caught:
        read(right, *overrides)
    assert caught.value.where
    assert caught.value.fix
    return caught.value


def test_what_a_run_reads(right, tmp_path):
    held_out = write_rows(tmp_path / "held_out.jsonl", ROWS[:2])
    inputs = read(right, f"data.eval_prompts={held_out}", "data.shuffle=false")
    assert inputs.spec.num_layers == 4
    assert inputs.algorithm.name == "grpo"
    assert [scorer.name for scorer in inputs.reward.scorers] == ["function"]
    assert [prompt.text for prompt in inputs.eval_sets[""]] == ["0 + 1?", "1 + 1?"]
    first = inputs.stream.next_batch(1)[0]
    assert (first.text, first.label, len(first.token_ids)) == ("0 + 1?", 1, 6)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [([], 3), (["train.epochs=2"], 6), (["train.steps=5"], 5), (["data.max_samples=3"], 2)],
)
def test_total_steps(right, overrides, steps):
    assert read(right, *overrides).total_steps == steps


def test_no_held_out_prompts(right):
    assert read(right).eval_sets == {}


def test_a_prompt_longer_than_the_limit(right, tmp_path):
    error = refused(right, "data.max_prompt_tokens=5")
    assert "6 tokens are more than data.max_prompt_tokens=5" in error.what
    assert error.where == f"{tmp_path / 'rows.jsonl'}:1"
    held_out = write_rows(tmp_path / "held_out.jsonl", [ROWS[0], {"prompt": 9 * "x", "answer": 0}])
    assert refused(right, f"data.eval_prompts={held_out}").where.endswith("held_out.jsonl:2")


def test_ids_beyond_the_vocabulary(right, tmp_path):
    write_weights(write_config(tmp_path / "model", vocab_size=222))
    error = refused(right)  # the prompts' highest id is that of the space
    assert "gives id 222 ('Ġ'), the model has only 222 embeddings" in error.what
    write_weights(write_config(tmp_path / "model", vocab_size=223))
    read(right)


def test_an_unsupported_architecture(right, tmp_path):
    write_config(tmp_path / "model", architectures=["MambaForCausalLM"])
    error = refused(right)
    assert error.where == str(tmp_path / "model" / "config.json")
    assert "MambaForCausalLM" in error.what
    assert "LlamaForCausalLM" in error.fix


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.parallel.pipeline=9", "cluster.actor_ranks=9"], "model.parallel.pipeline"),
        (
            [
                "model.parallel.pipeline=2",
                "model.parallel.virtual_pipeline=4",
                "cluster.actor_ranks=2",
            ],
            "model.parallel.virtual_pipeline",
        ),
    ],
)
def test_more_chunks_than_layers(right, overrides, key):
    assert refused(right, *overrides).where == key


def test_an_unknown_algorithm_is_named_first(right):
    error = refused(right, "algorithm.name=gpro", "model.path=nowhere")
    assert (error.where, error.fix) == ("algorithm.name", "did you mean grpo?")


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_does_not_load(right, tmp_path, content):
    file = tmp_path / "model" / "tokenizer.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match="tokenizer does not load") as caught:
        load_tokenizer(str(tmp_path / "model"))
    assert caught.value.where == str(tmp_path / "model")
    assert "\n" not in caught.value.what


def test_weights_of_another_model(right, tmp_path):
    write_config(tmp_path / "model", hidden_size=64)
    assert "model.embed_tokens.weight has shape" in refused(right).what


def test_weights_cut_short(right, tmp_path):
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "not a whole safetensors file" in refused(right).what
