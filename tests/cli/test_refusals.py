"""Whatever is wrong with the input is said at once: what, where, and what to do."""

import pytest

from megarlhf.cli import main
from megarlhf.config import loader
from megarlhf.config.schema import RLConfig
from megarlhf.trainer.run_directory import RunDirectory
from tests.cli.conftest import Started
from tests.trainer.tiny_run import write_config, write_weights


def says(text: str, *parts) -> None:
    missing = [part for part in map(str, parts) if part not in text]
    assert not missing, f"{missing} not in {text}"


@pytest.mark.parametrize("command", ["rl", "sft"])
def test_the_right_commands_would_start(commands, command):
    with pytest.raises(Started):
        main(commands[command])


@pytest.mark.parametrize("command", ["rl", "sft"])
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.path=/no/model"], ["model.path", "no such directory: /no/model", "hf download"]),
        (["optimzer.lr=1"], ["command line", "'optimzer.lr'", "did you mean 'optimizer.lr'"]),
        (["OPTIMIZER.LR=1"], ["'OPTIMIZER.LR'", "did you mean 'optimizer.lr'"]),
        (["train.steps=many"], ["train.steps expects a whole number", "'many'"]),
        (["lr"], ["'lr' is not an override", "dotted.key=value"]),
        (["--config=/no/run.yaml"], ["/no/run.yaml", "no such config file"]),
        (["output.dir="], ["output.dir expects text, got nothing"]),
        (["model.parallel.pipeline=5"], ["model.parallel.pipeline", "num_hidden_layers (4)"]),
        (["optimizer.lr=-1"], ["optimizer.lr", "at least 0", "the default is 1e-06"]),
    ],
)
def test_settings(refusal, command, overrides, parts):
    says(refusal(*overrides, command=command), *parts)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["model.parallel.tensor=8", "cluster.actor_ranks=8"],
            ["model.parallel.tensor", "num_attention_heads (4)", "got 8", "use 1, 2 or 4"],
        ),
        (
            ["model.parallel.tensor=2", "cluster.actor_ranks=3"],
            ["cluster.actor_ranks", "multiple of 2", "got 3", "use 2 or 4"],
        ),
        (["rollout.tensor_parallel=3"], ["rollout.tensor_parallel", "use 1, 2 or 4"]),
        (["rollout.expert_parallel=true"], ["rollout.expert_parallel", "no experts"]),
        (["algorithm.name=gpro"], ["algorithm.name", "no algorithm 'gpro'", "did you mean grpo?"]),
        (["algorithm.name=best"], ["algorithm.name", "no algorithm 'best'", "known: grpo"]),
        (["data.prompts=json@/no/rows"], ["data.prompts", "no such file", "/no/rows"]),
        (["reward.function=/no/reward.py"], ["reward.function", "no such file: /no/reward.py"]),
        (["rollout.samples_per_prompt=1"], ["rollout.samples_per_prompt", "at least 2 for grpo"]),
        (
            ["rollout.max_new_tokens=128"],
            ["136 tokens", "max_position_embeddings (128)", "rollout.max_new_tokens"],
        ),
        (["data.input_key=question"], ["rows.jsonl:1", "no key 'question'", "'prompt', 'answer'"]),
        (["data.label_key=solution"], ["rows.jsonl:1", "no key 'solution'"]),
        (
            ["data.max_prompt_tokens=5"],
            ["rows.jsonl:1", "6 tokens", "raise data.max_prompt_tokens"],
        ),
        (["data.apply_chat_template=true"], ["chat template"]),
    ],
)
def test_reinforcement_learning(refusal, overrides, parts):
    says(refusal(*overrides), *parts)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.train=json@/no/rows"], ["data.train", "no such file", "/no/rows"]),
        (["data.output_key=reply"], ["sft.jsonl:1", "no key 'reply'", "'input', 'output'"]),
        (["data.max_tokens=5"], ["sft.jsonl:1", "8 tokens", "data.max_tokens=5"]),
        (["data.max_tokens=129"], ["data.max_tokens", "max_position_embeddings (128)"]),
        (["rollout.engines=2"], ["unknown key 'rollout.engines'"]),
    ],
)
def test_supervised_fine_tuning(refusal, overrides, parts):
    says(refusal(*overrides, command="sft"), *parts)


def test_ranks_that_torchrun_started(refusal, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    text = refusal("model.parallel.tensor=2", command="sft")
    says(text, "torchrun's number of processes", "multiple of 2", "got 3")


def test_only_the_first_rank_complains(commands, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main([*commands["rl"], "model.path=/no/model"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("rl", ["model.path", "data.prompts", "output.dir"]),
        ("sft", ["model.path", "data.train", "output.dir"]),
    ],
)
def test_settings_that_must_be_given(capsys, command, keys):
    assert main([command]) == 2
    text = capsys.readouterr().err
    says(text, "megarlhf: error: no value for", *keys, *(f"{key}=..." for key in keys))
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "x", "answer": }', "does not parse as JSON: Expecting value (column 27)"),
        ('["x"]', "must be a JSON object, not list"),
        ('{"prompt": 7, "answer": 1}', "must be a string, not int"),
        ('{"prompt": "", "answer": 1}', "no tokens"),
        ('{"answer": 1}', "no key 'prompt'"),
    ],
)
def test_a_line_of_the_data(refusal, tmp_path, line, what):
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text() + line + "\n")
    says(refusal(), f"{file}:7: ", what)


def test_an_unknown_key_of_a_file(refusal, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  dtype: float32\nrollout:\n  temprature: 1.0\n")
    text = refusal(f"--config={file}")
    says(text, f"{file}:4: ", "'rollout.temprature'", "did you mean 'rollout.temperature'?")


def test_the_file_of_another_command(refusal):
    text = refusal("--config=configs/grpo/own_data.yaml", command="sft")
    says(text, "'data.max_prompt_tokens'", "use megarlhf rl or generate, which the file is for")


def test_a_setting_written_as_an_option(commands, capsys):
    with pytest.raises(SystemExit):
        main([*commands["rl"], "--optimizer.lr=1"])
    says(capsys.readouterr().err, "settings have no dashes: optimizer.lr=1")


@pytest.mark.parametrize("command", ["rl", "sft"])
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "LlamaForCausalLM"]),
        ({"attention_bias": True}, ["attention_bias=True", "supported: False"]),
    ],
)
def test_a_model_that_is_not_supported(refusal, tmp_path, command, changes, parts):
    write_config(tmp_path / "model", **changes)
    says(refusal(command=command), tmp_path / "model" / "config.json", *parts)


@pytest.mark.parametrize("command", ["rl", "sft"])
def test_a_tokenizer_of_another_model(refusal, tmp_path, command):
    write_weights(write_config(tmp_path / "model", vocab_size=40))
    says(refusal(command=command), tmp_path / "model", "has only 40 embeddings")


@pytest.mark.parametrize("command", ["rl", "sft"])
def test_no_tokenizer(refusal, tmp_path, command):
    (tmp_path / "model" / "tokenizer.json").unlink()
    says(refusal(command=command), tmp_path / "model", "tokenizer does not load", "tokenizer.json")


def test_a_reward_file_without_reward_func(refusal, tmp_path):
    (tmp_path / "reward.py").write_text("def reward(queries, prompts, labels): ...\n")
    says(
        refusal(), tmp_path / "reward.py", "no reward_func", "reward_func(queries, prompts, labels)"
    )


def test_the_directory_of_another_run(refusal, commands, tmp_path):
    config = loader.load(RLConfig, None, [*commands["rl"][1:], "optimizer.lr=2e-6"])
    with RunDirectory("rl", config):
        says(refusal("optimizer.lr=2e-6"), tmp_path / "out", "another process is writing")
    text = refusal()
    says(text, tmp_path / "out", "optimizer.lr was 2e-06, is 1e-06", "set output.dir")
    (tmp_path / "out" / "run.json").unlink()
    says(refusal(), tmp_path / "out", "not empty", "set output.dir")
