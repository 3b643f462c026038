import json

import pytest

from megarlhf.config.checks import check_offline, check_rl
from megarlhf.config.loader import load
from megarlhf.config.ranges import RANGES, is_named
from megarlhf.config.schema import (
    DPOConfig,
    KDConfig,
    KTOConfig,
    PRMConfig,
    RLConfig,
    RMConfig,
    SFTConfig,
)
from megarlhf.config.settings import settings
from megarlhf.errors import UserError

DENSE = {
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "max_position_embeddings": 4096,
}
CONFIGS = [RLConfig, SFTConfig, RMConfig, PRMConfig, DPOConfig, KTOConfig, KDConfig]
EXPERTS = DENSE | {"num_local_experts": 4}


@pytest.fixture
def run(tmp_path):
    """Checks a run that is right but for the given overrides; parts of the model's config."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model-00001-of-00001.safetensors").touch()
    for name in ("prompts.jsonl", "reward.py"):
        (tmp_path / name).touch()

    def run(*overrides, cls=RLConfig, world_size=8, hf=DENSE):
        (model / "config.json").write_text(json.dumps(hf))
        data = "prompts" if cls is RLConfig else "train"
        required = [
            f"model.path={model}",
            f"output.dir={tmp_path}",
            f"data.{data}=json@{tmp_path / 'prompts.jsonl'}",
        ]
        if cls is not RLConfig:
            check_offline(load(cls, None, required + list(overrides)), world_size)
            return
        required += [f"reward.function={tmp_path / 'reward.py'}", "cluster.actor_ranks=8"]
        check_rl(load(cls, None, required + list(overrides)))

    return run


def refuse(run, *overrides, where, parts, **kwargs):
    with pytest.raises(UserError) as caught:
        run(*overrides, **kwargs)
    error = caught.value
    assert error.where == where, str(error)
    assert error.fix
    assert all(part in str(error) for part in parts), str(error)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.parallel.tensor=4", "model.parallel.sequence=true"],
        ["model.parallel.pipeline=2", "model.parallel.virtual_pipeline=4"],
        ["model.parallel.tensor=2", "model.parallel.pipeline=2", "model.parallel.context=2"],
        ["rollout.tensor_parallel=6"],
        ["data.prompts=some/dataset"],
        ["data.input_template=Q: {} A:"],
        ["rollout.top_k=20", "rollout.top_p=0.9"],
        ["algorithm.name=ppo", "rollout.samples_per_prompt=1"],
        ["algorithm.updates_per_rollout=4"],
        ["optimizer.lr=0"],
        ["rollout.async_steps=2", "stream.during_generation=abort"],
    ],
)
def test_right_runs(run, overrides):
    run(*overrides)


def test_right_sft(run):
    run(cls=SFTConfig)
    run("model.parallel.tensor=2", cls=SFTConfig, world_size=2)


def test_required():
    with pytest.raises(UserError, match=r"model\.path and data\.prompts.*output\.dir") as caught:
        check_rl(RLConfig())
    assert "model.path=..." in caught.value.fix
    with pytest.raises(UserError, match=r"data\.train"):
        check_offline(SFTConfig(), 1)


@pytest.mark.parametrize(
    ("key", "value", "wording"),
    [
        ("model.parallel.tensor", 0, "at least 1"),
        ("model.parallel.pipeline", -1, "at least 1"),
        ("optimizer.lr", -1e-6, "at least 0"),
        ("optimizer.beta2", 1, "at least 0 and less than 1"),
        ("optimizer.min_lr_ratio", 1.5, "between 0 and 1"),
        ("rollout.prompts_per_step", 0, "at least 1"),
        ("rollout.samples_per_prompt", 0, "at least 1"),
        ("rollout.max_new_tokens", 0, "at least 1"),
        ("rollout.temperature", 0, "at least 0.01, the coldest that vLLM samples at"),
        ("rollout.top_p", 0, "greater than 0 and at most 1"),
        ("rollout.top_p", 1.1, "greater than 0 and at most 1"),
        ("rollout.top_k", 0, "at least 1, or -1 to keep all tokens"),
        ("algorithm.max_logprob_gap", 0, "greater than 0"),
        ("train.steps", 0, "at least 1"),
        ("train.micro_batch_tokens", 0, "at least 1"),
        ("train.save_every", -1, "at least 0"),
        ("cluster.actor_ranks", 0, "at least 1"),
    ],
)
def test_ranges(run, key, value, wording):
    refuse(run, f"{key}={value}", where=key, parts=[f"must be {wording}, got {value}", "default"])


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_number_has_a_range_that_its_default_keeps(cls):
    for key, _, value in settings(cls()):
        if type(value) in (int, float):
            (holds,) = (holds for _, holds, names in RANGES if is_named(key, names))
            assert holds(value), key


def test_every_range_is_of_a_setting():
    known = {setting.key for cls in CONFIGS for setting in settings(cls())}
    names = [name for _, _, names in RANGES for name in names]
    assert all(any(is_named(key, [name]) for key in known) for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("overrides", "where", "parts"),
    [
        (
            ["data.input_template={}", "data.apply_chat_template=true"],
            "data.input_template",
            ["apply_chat_template"],
        ),
        (["data.input_template=Q:"], "data.input_template", ["{} exactly once", "'Q:'"]),
        (["data.input_template={} {}"], "data.input_template", ["{} exactly once"]),
        (["data.prompts=json@/no/file"], "data.prompts", ["/no/file"]),
        (["data.eval_prompts=json@/no/file"], "data.eval_prompts", ["/no/file"]),
        (["reward.function=/no/reward.py"], "reward.function", ["/no/reward.py", "reward_func"]),
        (["reward.function=none"], "reward", ["nothing scores", "reward.function", "reward.urls"]),
        (["reward.weights=[1, 2]"], "reward.weights", ["2 weights for 1 sources (function)"]),
        (["reward.urls=[here:5000]"], "reward.urls", ["'here:5000'", "http://HOST:PORT/PATH"]),
        (["reward.workers=-1"], "reward.workers", ["at least 0"]),
        (["reward.timeout_s=0"], "reward.timeout_s", ["greater than 0"]),
        (
            [
                "rollout.prompts_per_step=5",
                "rollout.samples_per_prompt=4",
                "algorithm.updates_per_rollout=3",
            ],
            "algorithm.updates_per_rollout",
            ["20 samples", "got 3", "use 2 or 4"],
        ),
        (["rollout.async_steps=-1"], "rollout.async_steps", ["at least 0"]),
        (
            ["rollout.async_steps=1", "rollout.placement=colocated"],
            "rollout.async_steps",
            ["1 steps of sampling ahead", "by turns", "rollout.placement=separate"],
        ),
        (
            ["rollout.async_steps=1", "reward.models=[some]", "cluster.colocate=[critic+reward]"],
            "cluster.colocate",
            ["score while the others are trained"],
        ),
        (
            ["rollout.async_steps=1", "algorithm.max_logprob_gap=1e-5"],
            "algorithm.max_logprob_gap",
            ["older weights", "max_logprob_gap=null"],
        ),
    ],
)
def test_data_reward_and_rollout(run, overrides, where, parts):
    refuse(run, *overrides, where=where, parts=parts)


def test_sft_data(run):
    sft = {"cls": SFTConfig}
    refuse(run, "data.train=json@no", where="data.train", parts=["no such file"], **sft)
    template = "data.input_template"
    refuse(run, f"{template}=x", where=template, parts=["exactly once"], **sft)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda model: (model / "config.json").unlink(), ["no config.json"]),
        (lambda model: (model / "config.json").write_text("{"), ["not valid JSON", "line 1"]),
        (lambda model: (model / "config.json").write_text("[]"), ["not a JSON object"]),
        (lambda model: next(model.glob("*.safetensors")).unlink(), ["no *.safetensors"]),
        (
            lambda model: model.rename(model.with_name("moved")),
            ["no such directory", "hf download"],
        ),
    ],
)
def test_model_directory(tmp_path, spoil, parts):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    config = load(SFTConfig, None, [f"model.path={model}", "data.train=some/data", "output.dir=o"])
    check_offline(config, 1)
    spoil(model)
    with pytest.raises(UserError) as caught:
        check_offline(config, 1)
    assert caught.value.where == "model.path"
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("hf", "layout", "where", "parts"),
    [
        (DENSE, ["tensor=8"], "tensor", ["num_attention_heads (12)", "got 8", "use 1, 2 or 4"]),
        (
            DENSE | {"intermediate_size": 12},
            ["tensor=3"],
            "tensor",
            ["num_key_value_heads (4)", "use 1, 2 or 4"],
        ),
        (
            DENSE | {"num_key_value_heads": 1, "head_dim": 3},
            ["tensor=4"],
            "tensor",
            ["6 rows of keys and values", "use 1 or 2"],
        ),
        (DENSE | {"intermediate_size": 6}, ["tensor=4"], "tensor", ["intermediate_size (6)"]),
        (
            {"num_attention_heads": 6},
            ["tensor=4"],
            "tensor",
            ["num_attention_heads (6)", "use 1, 2, 3 or 6"],
        ),
        (DENSE, ["sequence=true"], "sequence", ["tensor > 1"]),
        (DENSE, ["virtual_pipeline=2"], "virtual_pipeline", ["pipeline > 1"]),
        (DENSE | {"num_hidden_layers": 2}, ["pipeline=3"], "pipeline", ["(2)", "use 2 or less"]),
        (
            DENSE,
            ["pipeline=2", "virtual_pipeline=5"],
            "virtual_pipeline",
            ["one of the 8 layers", "use 4 or less"],
        ),
        (
            DENSE,
            ["pipeline=2", "chunk_layers=[3,4]"],
            "chunk_layers",
            ["2 positive numbers", "8 layers", "got [3, 4]"],
        ),
        (DENSE, ["expert=2"], "expert", ["no experts", "model.parallel.expert=1"]),
        (EXPERTS, ["expert=3"], "expert", ["4 experts", "use 1, 2 or 4"]),
        (EXPERTS, ["tensor=2", "expert=2"], "sequence", ["mixture of experts", "sequence=true"]),
        (
            EXPERTS,
            ["expert=4", "tensor=4", "sequence=true"],
            "expert",
            ["context * data parallelism (2 with 8 ranks)", "use 2"],
        ),
    ],
)
def test_layout(run, hf, layout, where, parts):
    overrides = [f"model.parallel.{setting}" for setting in layout]
    where = f"model.parallel.{where}"
    refuse(run, *overrides, hf=hf, where=where, parts=parts)
    refuse(run, *overrides, hf=hf, where=where, parts=parts, cls=SFTConfig, world_size=8)


@pytest.mark.parametrize("name", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_experts_under_every_name(run, name):
    run("model.parallel.expert=4", hf=DENSE | {name: 8})


def test_world_size(run):
    layout = ["model.parallel.tensor=2", "model.parallel.context=2"]
    parts = ["multiple of 4", "got 6", "use 4 or 8"]
    refuse(run, *layout, "cluster.actor_ranks=6", where="cluster.actor_ranks", parts=parts)
    where = "torchrun's number of processes"
    refuse(run, *layout, where=where, parts=parts, cls=SFTConfig, world_size=6)
    parts = ["multiple of 4", "got 3", "use 4,"]
    refuse(run, *layout, where=where, parts=parts, cls=SFTConfig, world_size=3)


def test_engine_tensor_parallel(run):
    key = "rollout.tensor_parallel"
    refuse(run, f"{key}=8", where=key, parts=["num_attention_heads (12)", "1, 2, 3, 4, 6 or 12"])


def test_sequence_length(run):
    run("data.max_prompt_tokens=4000", "rollout.max_new_tokens=96")
    where = "data.max_prompt_tokens + rollout.max_new_tokens"
    overrides = ["data.max_prompt_tokens=4000", "rollout.max_new_tokens=97"]
    refuse(run, *overrides, where=where, parts=["4097", "max_position_embeddings (4096)"])
    refuse(run, "data.max_tokens=5000", where="data.max_tokens", parts=["5000"], cls=SFTConfig)


def test_model_config_without_sizes_is_left_to_the_model_code(run):
    run("model.parallel.tensor=8", hf={})


TIGHT = ["train.micro_batch_tokens=4000"]


@pytest.mark.parametrize(
    ("cls", "overrides", "where", "parts"),
    [
        (
            SFTConfig,
            [*TIGHT, "train.batch_size=12"],
            "train.batch_size",
            ["multiple of 8", "4100"],
        ),
        (
            RMConfig,
            [*TIGHT, "train.batch_size=12"],
            "train.batch_size",
            ["multiple of 8", "8200"],
        ),
        (RMConfig, ["train.eval_every=2"], "train.eval_every", ["no rows", "data.eval"]),
        (
            DPOConfig,
            ["loss.kind=ipo", "loss.label_smoothing=0.1"],
            "loss.label_smoothing",
            ["loss.kind=sigmoid"],
        ),
        (DPOConfig, ["loss.label_smoothing=0.5"], "loss.label_smoothing", ["less than 0.5"]),
        (DPOConfig, ["loss.beta=0"], "loss.beta", ["greater than 0"]),
        (DPOConfig, ["data.margin_key=margin"], "data.margin_key", ["reward models"]),
        (
            KTOConfig,
            ["train.batch_size=1", "model.parallel.tensor=4", "model.parallel.pipeline=2"],
            "train.batch_size",
            ["at least 2", "loss.kl=none"],
        ),
    ],
)
def test_offline_settings_that_do_not_fit(run, cls, overrides, where, parts):
    refuse(run, *overrides, where=where, parts=parts, cls=cls, world_size=8)


DP3 = ["cluster.actor_ranks=3", "rollout.samples_per_prompt=2"]
SHORT = ["data.max_prompt_tokens=8", "rollout.max_new_tokens=8"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["rollout.prompts_per_step=1"], ["2 sequences", "3 data-parallel ranks", "3 or more"]),
        (
            ["rollout.prompts_per_step=2", "train.micro_batch_tokens=35"],
            ["not a multiple of 3", "at least 36"],
        ),
    ],
)
def test_sequences_that_cannot_be_dealt_to_the_ranks(run, overrides, parts):
    refuse(
        run,
        *(*DP3, *SHORT, *overrides),
        where="rollout.prompts_per_step * samples_per_prompt / algorithm.updates_per_rollout",
        parts=parts,
    )


def test_sequences_that_can_be_dealt_to_the_ranks(run):
    run(*DP3, *SHORT, "rollout.prompts_per_step=2", "train.micro_batch_tokens=36")
    run(*DP3, *SHORT, "rollout.prompts_per_step=3", "train.micro_batch_tokens=1")


def test_a_batch_of_too_few_rows(run):
    text = ["train.batch_size=3"]
    refuse(run, *text, cls=SFTConfig, world_size=4, where="train.batch_size", parts=["4 or more"])
