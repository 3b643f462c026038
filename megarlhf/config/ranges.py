"""What single settings must be: given, and in their range."""

import json
import math
from collections.abc import Callable, Sequence

from megarlhf.config.schema import OfflineConfig, RLConfig
from megarlhf.config.settings import missing_required, settings
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
            "agent.max_turns",
            "agent.max_turn_tokens",
            "agent.concurrency",
            "agent.workers",
            "rollout.engines",
            "rollout.tensor_parallel",
            "rollout.prompts_per_step",
            "rollout.samples_per_prompt",
            "rollout.max_new_tokens",
            "rollout.kv_cache_gib",
            "rollout.max_sequences",
            "stream.bucket_mib",
            "algorithm.kl_horizon",
            "algorithm.epochs",
            "algorithm.updates_per_rollout",
            "train.steps",
            "train.epochs",
            "train.batch_size",
            "train.micro_batch_tokens",
            "train.keep_checkpoints",
            "ptx.batch_size",
            "cluster.nodes",
            "cluster.gpus_per_node",
            "cluster.actor_ranks",
            "cluster.critic_ranks",
            "cluster.reference_ranks",
            "cluster.reward_ranks",
            "cluster.actor_nodes",
            "cluster.critic_nodes",
            "cluster.reference_nodes",
            "cluster.reward_nodes",
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
            "lora.rank",
            "algorithm.clip_low",
            "algorithm.clip_high",
            "algorithm.entropy_coef",
            "algorithm.correction_low",
            "algorithm.kl_coef",
            "critic.warmup_rollouts",
            "rollout.async_steps",
            "reward.workers",
            "reward.retries",
            "agent.retries",
            "algorithm.overlong_penalty",
            "algorithm.length_penalty",
            "algorithm.max_refills",
            "stream.verify_every",
            "stream.restarts",
            "train.save_every",
            "train.eval_every",
            "train.max_skipped_steps",
            "ptx.coef",
            "evaluation.samples",
            "train.seed",
            "output.sampled_rollouts",
        ),
    ),
    (
        "greater than 0",
        lambda number: number > 0,
        (
            "optimizer.eps",
            "lora.alpha",
            "loss.beta",
            "loss.temperature",
            "reward.timeout_s",
            "agent.timeout_s",
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
        ("rollout.temperature", "evaluation.temperature"),
    ),
    (
        "greater than 0 and at most 1",
        lambda number: 0 < number <= 1,
        ("rollout.top_p", "evaluation.top_p", "rollout.gpu_memory_utilization"),
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
    ("a finite number", math.isfinite, ("evaluation.pass_score",)),
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
        ("optimizer.beta1", "optimizer.beta2", "ema.decay", "lora.dropout"),
    ),
    (
        "at least 1, or -1 to keep all tokens",
        lambda number: number >= 1 or number == -1,
        ("rollout.top_k",),
    ),
)


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
