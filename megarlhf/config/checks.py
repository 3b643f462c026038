"""Rules that hold between settings, the model's ``config.json`` and the files on disk.

They run before any process starts or any model is built, and need only the standard library. Each
function below is one family of rules; the first rule that is broken raises a `UserError` that
names the key and what to change. Whether a model's architecture is supported is for `models` to
say, and whether an algorithm exists for `algo`.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from megarlhf.config.loader import missing_required, settings
from megarlhf.config.schema import (
    ParallelConfig,
    PromptDataConfig,
    RLConfig,
    SFTConfig,
    SupervisedDataConfig,
)
from megarlhf.errors import UserError

GROUP_ALGORITHMS = frozenset({"grpo"})  # advantages relative to the other samples of a prompt
EXPERT_COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")  # in config.json

# What a number must be, the test, and the settings it holds for (None is not tested).
RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda number: number >= 1,
        (
            "model.parallel.tensor",
            "model.parallel.pipeline",
            "model.parallel.context",
            "model.parallel.expert",
            "model.parallel.virtual_pipeline",
            "data.max_samples",
            "data.max_prompt_tokens",
            "data.max_tokens",
            "rollout.engines",
            "rollout.tensor_parallel",
            "rollout.prompts_per_step",
            "rollout.samples_per_prompt",
            "rollout.max_new_tokens",
            "rollout.kv_cache_gib",
            "algorithm.updates_per_rollout",
            "train.steps",
            "train.epochs",
            "train.batch_size",
            "train.micro_batch_tokens",
            "train.keep_checkpoints",
            "cluster.actor_ranks",
            "cluster.threads_per_rank",
        ),
    ),
    (
        "at least 0",
        lambda number: number >= 0,
        (
            "model.aux_loss_coef",
            "model.z_loss_coef",
            "optimizer.lr",
            "optimizer.warmup_steps",
            "optimizer.weight_decay",
            "optimizer.clip_grad",
            "algorithm.clip_low",
            "algorithm.clip_high",
            "algorithm.kl_coef",
            "train.save_every",
            "train.eval_every",
            "train.seed",
            "output.sampled_rollouts",
        ),
    ),
    (
        "greater than 0",
        lambda number: number > 0,
        (
            "optimizer.eps",
            "rollout.temperature",
            "algorithm.max_logprob_gap",
            "cluster.cpus_per_rank",
            "cluster.start_timeout_s",
            "cluster.stream_timeout_s",
        ),
    ),
    (
        "greater than 0 and at most 1",
        lambda number: 0 < number <= 1,
        ("rollout.top_p", "rollout.gpu_memory_utilization"),
    ),
    ("between 0 and 1", lambda number: 0 <= number <= 1, ("optimizer.min_lr_ratio",)),
    (
        "at least 0 and less than 1",
        lambda number: 0 <= number < 1,
        ("optimizer.beta1", "optimizer.beta2"),
    ),
    (
        "at least 1, or -1 to keep all tokens",
        lambda number: number >= 1 or number == -1,
        ("rollout.top_k",),
    ),
)


def check_rl(config: RLConfig) -> None:
    """Checks everything about ``megarlhf rl`` that can be known before it starts.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    check_required(config)
    check_ranges(config)
    check_input_text(config.data)
    check_data_source("data.prompts", config.data.prompts)
    check_data_source("data.eval_prompts", config.data.eval_prompts)
    check_reward_function(config)
    check_rollout_batch(config)
    model = read_model_config(config.model.path)
    ranks = config.cluster.actor_ranks
    check_parallel(config.model.parallel, model, ranks, "cluster.actor_ranks")
    check_engine_heads(config, model)
    lengths = {
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
        "rollout.max_new_tokens": config.rollout.max_new_tokens,
    }
    check_sequence_length(lengths, model)


def check_sft(config: SFTConfig, world_size: int) -> None:
    """Checks everything about ``megarlhf sft`` that can be known before it starts.

    Args:
        config: The run's configuration.
        world_size: The number of ranks that torchrun started.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    check_required(config)
    check_ranges(config)
    check_input_text(config.data)
    check_data_source("data.train", config.data.train)
    model = read_model_config(config.model.path)
    check_parallel(config.model.parallel, model, world_size, "torchrun's number of processes")
    check_sequence_length({"data.max_tokens": config.data.max_tokens}, model)


# --- One configuration on its own ---------------------------------------------------------------


def check_required(config: RLConfig | SFTConfig) -> None:
    """Every setting without a default has a value."""
    missing = missing_required(config)
    if missing:
        raise UserError(
            f"no value for {' and '.join(missing)}",
            fix="add " + " ".join(f"{key}=..." for key in missing) + ", or set it in the YAML file",
        )


def check_ranges(config: RLConfig | SFTConfig) -> None:
    """Counts are positive, probabilities are probabilities, and so on: `RANGES`."""
    values = {key: value for key, _, value in settings(config) if value is not None}
    defaults = {key: value for key, _, value in settings(type(config)())}
    for wording, holds, keys in RANGES:
        for key in keys:
            if key in values and not holds(values[key]):
                raise UserError(
                    f"must be {wording}, got {values[key]}",
                    where=key,
                    fix=f"change {key}; the default is {json.dumps(defaults[key])}",
                )


def check_input_text(data: PromptDataConfig | SupervisedDataConfig) -> None:
    """The input is put in one template, which has one place for it."""
    template = data.input_template
    if template is None:
        return
    if data.apply_chat_template:
        raise UserError(
            "excludes data.apply_chat_template=true",
            where="data.input_template",
            fix="leave one of the two out",
        )
    if template.count("{}") != 1:
        raise UserError(
            f"must contain {{}} exactly once, where the input goes, got {template!r}",
            where="data.input_template",
            fix=r'write it like "Question: {}\nAnswer:"',
        )


def check_rollout_batch(config: RLConfig) -> None:
    """A rollout's samples make groups where they must, and cut into equal updates."""
    per_prompt, updates = config.rollout.samples_per_prompt, config.algorithm.updates_per_rollout
    if config.algorithm.name in GROUP_ALGORITHMS and per_prompt < 2:
        raise UserError(
            f"must be at least 2 for {config.algorithm.name}, which compares the samples of a "
            f"prompt, got {per_prompt}",
            where="rollout.samples_per_prompt",
            fix="raise rollout.samples_per_prompt, or choose another algorithm.name",
        )
    samples = config.rollout.prompts_per_step * per_prompt
    if samples % updates:
        raise UserError(
            f"must divide the {samples} samples of a rollout (rollout.prompts_per_step * "
            f"rollout.samples_per_prompt), got {updates}",
            where="algorithm.updates_per_rollout",
            fix=f"use {_any_of(_nearest_divisors(samples, updates))}, or change the other two",
        )


# --- Files --------------------------------------------------------------------------------------


def check_data_source(key: str, source: str | None) -> None:
    """The path of ``json@PATH`` exists; what else `datasets` can load is for it to say."""
    if source is None or not source.startswith("json@"):
        return
    path = Path(source.removeprefix("json@"))
    if not path.exists():
        raise UserError(f"no such file or directory: {path}", where=key, fix="check the path")


def check_reward_function(config: RLConfig) -> None:
    """The reward function's file exists."""
    path = Path(config.reward.function)
    if not path.is_file():
        raise UserError(
            f"no such file: {path}",
            where="reward.function",
            fix="give a Python file that defines reward_func(queries, prompts, labels)",
        )


def read_model_config(path: str) -> dict[str, Any]:
    """The parsed ``config.json`` of a Hugging Face model directory that also has weights."""
    directory, key = Path(path), "model.path"
    if not directory.is_dir():
        raise UserError(
            f"no such directory: {directory}",
            where=key,
            fix="give a directory with config.json, *.safetensors and the tokenizer; "
            "`hf download NAME --local-dir DIR` fetches one from the Hugging Face hub",
        )
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(
            f"no config.json in {directory}",
            where=key,
            fix="give the directory of a Hugging Face checkpoint",
        )
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"no *.safetensors in {directory}",
            where=key,
            fix="download the weights, or save them again with save_pretrained()",
        )
    try:
        model = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise UserError(
            f"{file} is not valid JSON: {error}", where=key, fix="repair it or download it again"
        ) from None
    if not isinstance(model, dict):
        raise UserError(
            f"{file} is not a JSON object", where=key, fix="repair it or download it again"
        )
    return model


# --- The model and its layout -------------------------------------------------------------------


def check_parallel(
    parallel: ParallelConfig, model: dict[str, Any], world_size: int, world_name: str
) -> None:
    """The model can be laid out over ``world_size`` ranks, a number that ``world_name`` sets."""
    check_tensor(parallel, model, world_size)
    check_pipeline(parallel, model, world_size)
    check_expert(parallel, model, world_size)
    check_world(parallel, world_size, world_name)


def check_tensor(parallel: ParallelConfig, model: dict[str, Any], world_size: int) -> None:
    """Tensor parallelism cuts heads and the MLP evenly; sequence parallelism comes with it."""
    heads = _size(model, "num_attention_heads")
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": _size(model, "num_key_value_heads") or heads,
        "intermediate_size": _size(model, "intermediate_size"),
        "moe_intermediate_size": _size(model, "moe_intermediate_size"),
    }
    sizes = {name: size for name, size in sizes.items() if size is not None}
    for name, size in sizes.items():
        if size % parallel.tensor:
            choices = _divisors(sizes.values(), world_size)
            raise UserError(
                f"must divide the model's {name} ({size}), got {parallel.tensor}",
                where="model.parallel.tensor",
                fix=f"use {_any_of(choices)}",
            )
    if parallel.sequence and parallel.tensor == 1:
        raise UserError(
            "needs model.parallel.tensor > 1",
            where="model.parallel.sequence",
            fix="set model.parallel.sequence=false, or raise model.parallel.tensor",
        )


def check_pipeline(parallel: ParallelConfig, model: dict[str, Any], world_size: int) -> None:
    """Each model chunk of each pipeline stage gets the same number of layers."""
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline
    if chunks > 1 and stages == 1:
        raise UserError(
            "needs model.parallel.pipeline > 1",
            where="model.parallel.virtual_pipeline",
            fix="set model.parallel.virtual_pipeline=1, or raise model.parallel.pipeline",
        )
    layers = _size(model, "num_hidden_layers")
    if layers is None or layers % (stages * chunks) == 0:
        return
    if layers % stages:
        raise UserError(
            f"must divide the model's num_hidden_layers ({layers}), got {stages}",
            where="model.parallel.pipeline",
            fix=f"use {_any_of(_divisors([layers], world_size))}",
        )
    raise UserError(
        f"must divide the {layers // stages} layers of a pipeline stage, got {chunks}",
        where="model.parallel.virtual_pipeline",
        fix=f"use {_any_of(_divisors([layers // stages], layers))}",
    )


def check_expert(parallel: ParallelConfig, model: dict[str, Any], world_size: int) -> None:
    """Expert parallelism cuts a mixture of experts evenly."""
    key = "model.parallel.expert"
    counts = [count for name in EXPERT_COUNT_KEYS if (count := _size(model, name))]
    if not counts:
        if parallel.expert > 1:
            raise UserError(
                f"the model has no experts, got {parallel.expert}", where=key, fix=f"set {key}=1"
            )
        return
    if counts[0] % parallel.expert:
        raise UserError(
            f"must divide the model's {counts[0]} experts, got {parallel.expert}",
            where=key,
            fix=f"use {_any_of(_divisors(counts[:1], world_size))}",
        )
    if parallel.tensor > 1 and not parallel.sequence:  # Megatron-Core's MoELayer refuses to train
        raise UserError(
            "must be true for a mixture of experts with model.parallel.tensor > 1",
            where="model.parallel.sequence",
            fix="set model.parallel.sequence=true",
        )


def check_world(parallel: ParallelConfig, world_size: int, world_name: str) -> None:
    """The ranks hold a whole number of models, and each tensor rank's peers of expert groups."""
    ranks = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % ranks:
        below = world_size // ranks * ranks
        choices = [number for number in (below, below + ranks) if number > 0]
        raise UserError(
            f"must be a multiple of {ranks} (model.parallel.tensor * pipeline * context), "
            f"got {world_size}",
            where=world_name,
            fix=f"use {_any_of(choices)}, or change model.parallel",
        )
    plane = world_size // (parallel.tensor * parallel.pipeline)  # context times data
    if plane % parallel.expert:
        raise UserError(
            f"must divide context * data parallelism ({plane} with {world_size} ranks), "
            f"got {parallel.expert}",
            where="model.parallel.expert",
            fix=f"use {_any_of(_nearest_divisors(plane, parallel.expert))}, or change {world_name}",
        )


def check_engine_heads(config: RLConfig, model: dict[str, Any]) -> None:
    """vLLM's tensor parallelism cuts the attention heads evenly."""
    heads, ranks = _size(model, "num_attention_heads"), config.rollout.tensor_parallel
    if heads is not None and heads % ranks:
        raise UserError(
            f"must divide the model's num_attention_heads ({heads}), got {ranks}",
            where="rollout.tensor_parallel",
            fix=f"use {_any_of(_divisors([heads], heads))}",
        )


def check_sequence_length(lengths: dict[str, int], model: dict[str, Any]) -> None:
    """A sequence as long as the settings ``lengths`` allow has a position for every token."""
    positions, total = _size(model, "max_position_embeddings"), sum(lengths.values())
    if positions is not None and total > positions:
        keys = " + ".join(lengths)
        raise UserError(
            f"{total} tokens are more than the model's max_position_embeddings ({positions})",
            where=keys,
            fix=f"lower {keys} to at most {positions}",
        )


# --- Arithmetic and words -----------------------------------------------------------------------


def _size(model: dict[str, Any], name: str) -> int | None:
    """A number of ``config.json``; None where it is not given."""
    value = model.get(name)
    return value if isinstance(value, int) else None


def _divisors(numbers: Iterable[int], most: int) -> list[int]:
    """The common divisors of ``numbers`` up to ``most``."""
    numbers = list(numbers)
    return [d for d in range(1, most + 1) if all(number % d == 0 for number in numbers)]


def _nearest_divisors(number: int, wanted: int) -> list[int]:
    """The divisors of ``number`` next to ``wanted``, below and above."""
    divisors = _divisors([number], number)
    below, above = [d for d in divisors if d < wanted], [d for d in divisors if d > wanted]
    return below[-1:] + above[:1]


def _any_of(choices: list[int]) -> str:
    """``1, 2 or 4``."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last
