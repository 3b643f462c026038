"""Rules that hold between settings, the model's ``config.json`` and the files on disk.

They run before any process starts or any model is built, and need only the standard library. Each
function below is one family of rules; the first rule that is broken raises a `UserError` that
names the key and what to change. Whether a model's architecture is supported is for `models` to
say, and whether an algorithm exists and what it asks of the settings for `algo`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megarlhf.config.data_checks import check_data
from megarlhf.config.layout_checks import (
    check_engine_heads,
    check_parallel,
    check_sequence_length,
    check_shares,
)
from megarlhf.config.loader import missing_required, settings
from megarlhf.config.numbers import any_of, nearest_divisors
from megarlhf.config.offline_checks import check_evaluation, check_loss
from megarlhf.config.reward_checks import check_reward, models_by_name
from megarlhf.config.schema import OfflineConfig, ParallelConfig, RLConfig
from megarlhf.errors import UserError

# What a number must be, the test, and the settings it holds for, of every model that has them (None is
# not tested).
RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda number: number >= 1,
        (
            "parallel.tensor",
            "parallel.pipeline",
            "parallel.context",
            "parallel.expert",
            "parallel.virtual_pipeline",
            "loss.top_k",
            "data.max_samples",
            "data.max_prompt_tokens",
            "data.max_tokens",
            "data.workers",
            "reward.batch_size",
            "rollout.engines",
            "rollout.tensor_parallel",
            "rollout.prompts_per_step",
            "rollout.samples_per_prompt",
            "rollout.max_new_tokens",
            "rollout.kv_cache_gib",
            "stream.bucket_mib",
            "algorithm.kl_horizon",
            "algorithm.epochs",
            "algorithm.updates_per_rollout",
            "train.steps",
            "train.epochs",
            "train.batch_size",
            "train.micro_batch_tokens",
            "train.keep_checkpoints",
            "cluster.actor_ranks",
            "cluster.critic_ranks",
            "cluster.reward_ranks",
            "cluster.threads_per_rank",
        ),
    ),
    (
        "at least 0",
        lambda number: number >= 0,
        (
            "model.aux_loss_coef",
            "loss.center_coef",
            "loss.nll_coef",
            "loss.desirable_weight",
            "loss.undesirable_weight",
            "model.z_loss_coef",
            "optimizer.lr",
            "optimizer.warmup_steps",
            "optimizer.weight_decay",
            "optimizer.clip_grad",
            "algorithm.clip_low",
            "algorithm.clip_high",
            "algorithm.entropy_coef",
            "algorithm.correction_low",
            "algorithm.kl_coef",
            "critic.warmup_rollouts",
            "reward.workers",
            "reward.retries",
            "algorithm.overlong_penalty",
            "algorithm.length_penalty",
            "algorithm.max_refills",
            "stream.verify_every",
            "stream.restarts",
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
            "loss.beta",
            "loss.temperature",
            "reward.timeout_s",
            "algorithm.correction_high",
            "algorithm.kl_target",
            "algorithm.reward_clip",
            "algorithm.value_clip",
            "algorithm.max_logprob_gap",
            "cluster.cpus_per_rank",
            "cluster.start_timeout_s",
            "cluster.stream_timeout_s",
            "rollout.timeout_s",
        ),
    ),
    (
        "at least 0.01, the coldest that vLLM samples at",
        lambda number: number >= 0.01,
        ("rollout.temperature",),
    ),
    (
        "greater than 0 and at most 1",
        lambda number: 0 < number <= 1,
        ("rollout.top_p", "rollout.gpu_memory_utilization"),
    ),
    (
        "between 0 and 1",
        lambda number: 0 <= number <= 1,
        (
            "optimizer.min_lr_ratio",
            "loss.kd_coef",
            "algorithm.overlong_buffer",
            "algorithm.gamma",
            "algorithm.gae_lambda",
        ),
    ),
    (
        "greater than 0 and less than 1",
        lambda number: 0 < number < 1,
        ("loss.js_weight",),
    ),
    ("greater than 1", lambda number: number > 1, ("algorithm.dual_clip",)),
    ("at most 1", lambda number: number <= 1, ("algorithm.truncation_coef",)),
    (
        "at least 0 and less than 0.5",
        lambda number: 0 <= number < 0.5,
        ("loss.label_smoothing",),
    ),
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
    check_data(config.data)
    check_reward(config.reward)
    check_rollout_batch(config)
    model = read_model_config(config.model.path)
    check_engine_weights(config.model.path)
    ranks = config.cluster.actor_ranks
    check_parallel(config.model.parallel, model, ranks, "cluster.actor_ranks")
    check_engine_heads(config, model)
    check_sequence_length(rollout_lengths(config), model)
    check_rollout_shares(config, config.model.parallel, ranks)


def check_critic(config: RLConfig) -> None:
    """Checks the critic of ``megarlhf rl``, for an algorithm that has one.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    critic = config.critic
    model = read_model_config(critic.path or config.model.path, "critic.path")
    ranks = config.cluster.critic_ranks or config.cluster.actor_ranks
    check_parallel(critic.parallel, model, ranks, "cluster.critic_ranks", "critic.parallel")
    check_sequence_length(rollout_lengths(config), model, "critic")
    check_rollout_shares(config, critic.parallel, ranks)


def check_reward_models(config: RLConfig) -> None:
    """Checks the reward models of ``megarlhf rl`` that run on ranks of their own.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    parallel, ranks = config.reward.parallel, config.cluster.reward_ranks
    for path in models_by_name(config.reward.models).values():
        model = read_model_config(path, "reward.models")
        check_parallel(parallel, model, ranks, "cluster.reward_ranks", "reward.parallel")
        check_sequence_length(rollout_lengths(config), model, "reward model")


def rollout_lengths(config: RLConfig) -> dict[str, int]:
    """The settings that together say how long a sequence gets, tokens."""
    return {
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
        "rollout.max_new_tokens": config.rollout.max_new_tokens,
    }


def check_offline(config: OfflineConfig, world_size: int) -> None:
    """Checks everything about a command under torchrun that can be known before it starts.

    Args:
        config: The run's configuration.
        world_size: The number of ranks that torchrun started.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    check_required(config)
    check_ranges(config)
    check_data(config.data)
    check_evaluation(config)
    check_loss(config)
    model = read_model_config(config.model.path)
    check_parallel(config.model.parallel, model, world_size, "torchrun's number of processes")
    check_sequence_length({"data.max_tokens": config.data.max_tokens}, model)
    parallel, in_a_row = config.model.parallel, config.data.sequences_per_row
    padding = 2 * parallel.context * (parallel.tensor if parallel.sequence else 1)
    check_shares(
        config.train.batch_size,
        "train.batch_size",
        in_a_row * (config.data.max_tokens + padding) - padding,  # of a row, which is dealt whole
        parallel,
        world_size,
        config.train.micro_batch_tokens,
    )


# --- One configuration on its own ---------------------------------------------------------------


def check_required(config: RLConfig | OfflineConfig) -> None:
    """Every setting without a default has a value."""
    missing = missing_required(config)
    if missing:
        raise UserError(
            f"no value for {' and '.join(missing)}",
            fix="add " + " ".join(f"{key}=..." for key in missing) + ", or set it in the YAML file",
        )


def check_ranges(config: RLConfig | OfflineConfig) -> None:
    """Counts are positive, probabilities are probabilities, and so on: `RANGES`."""
    values = {key: value for key, _, value in settings(config) if value is not None}
    defaults = {key: value for key, _, value in settings(type(config)())}
    for wording, holds, names in RANGES:
        for key in values:
            if is_named(key, names) and not holds(values[key]):
                raise UserError(
                    f"must be {wording}, got {values[key]}",
                    where=key,
                    fix=f"change {key}; the default is {json.dumps(defaults[key])}",
                )


def is_named(key: str, names: Sequence[str]) -> bool:
    """Whether a setting has one of the names, by itself or as some model's: ``critic.optimizer.lr``."""
    return any(key == name or key.endswith(f".{name}") for name in names)


def check_rollout_batch(config: RLConfig) -> None:
    """A rollout's samples cut into equal updates."""
    per_prompt, updates = config.rollout.samples_per_prompt, config.algorithm.updates_per_rollout
    samples = config.rollout.prompts_per_step * per_prompt
    if samples % updates:
        raise UserError(
            f"must divide the {samples} samples of a rollout (rollout.prompts_per_step * "
            f"rollout.samples_per_prompt), got {updates}",
            where="algorithm.updates_per_rollout",
            fix=f"use {any_of(nearest_divisors(samples, updates))}, or change the other two",
        )


def check_rollout_shares(config: RLConfig, parallel: ParallelConfig, ranks: int) -> None:
    """An update's samples can be dealt to a model's data-parallel ranks."""
    rollout, updates = config.rollout, config.algorithm.updates_per_rollout
    check_shares(
        rollout.prompts_per_step * rollout.samples_per_prompt // updates,
        "rollout.prompts_per_step * samples_per_prompt / algorithm.updates_per_rollout",
        config.data.max_prompt_tokens + rollout.max_new_tokens,
        parallel,
        ranks,
        config.train.micro_batch_tokens,
    )


# --- Files --------------------------------------------------------------------------------------


def read_model_config(path: str, key: str = "model.path") -> dict[str, Any]:
    """The parsed ``config.json`` of a Hugging Face model directory that also has weights.

    Args:
        path: The directory.
        key: The setting that names it.
    """
    directory = Path(path)
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
    if not any(directory.glob("*.safetensors")) and not is_converted(directory):
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


def is_converted(directory: Path) -> bool:
    """Whether it holds weights in Megatron's format, as `tools/checkpoint_convert` makes them."""
    return (directory / "metadata.json").is_file()


def check_engine_weights(path: str) -> None:
    """vLLM can read the model's weights, too."""
    if is_converted(Path(path)):
        raise UserError(
            f"{path} is a checkpoint in Megatron's format, which vLLM does not read",
            where="model.path",
            fix="give the Hugging Face directory, or convert it back: docs/checkpoints.md",
        )
