"""Which settings make a run the run that it is."""

from collections.abc import Callable
from typing import Any

from megarlhf.config.reward_checks import servers_by_name

# What may differ when a run goes on: its length, its rhythm, where it runs, how long it waits, what it
# does about failures: all that an error of a running one may tell to change. All else is its identity;
# so is expert parallelism, under another degree of which Megatron cannot load optimizer state.
_LAYOUT = (
    "tensor",
    "sequence",
    "context",
    "pipeline",
    "virtual_pipeline",
    "chunk_layers",
    "overlap",
)
_MAY_CHANGE = (
    *("train.steps", "train.epochs", "train.save_every", "train.eval_every"),
    *("train.keep_checkpoints", "train.resume", "train.micro_batch_tokens"),
    *("train.best_metric", "train.best_is", "train.max_skipped_steps", "evaluation."),
    "ema.export",
    *(
        f"{model}.parallel.{key}"
        for model in ("model", "critic", "reference", "reward", "teacher")
        for key in _LAYOUT
    ),
    *("model.recompute", "critic.recompute", "critic.export"),
    *("optimizer.offload", "critic.optimizer.offload"),
    *("rollout.engines", "rollout.tensor_parallel", "rollout.placement"),
    *("rollout.cuda_graphs", "rollout.max_sequences", "rollout.share_prompts"),
    *("rollout.gpu_memory_utilization", "rollout.kv_cache_gib", "data.workers", "data.cache_dir"),
    *("rollout.packed_weights", "rollout.expert_parallel", "rollout.timeout_s"),
    *("reward.workers", "reward.timeout_s", "reward.retries", "reward.batch_size"),
    *("agent.workers", "agent.timeout_s", "agent.retries", "agent.concurrency"),
    *("reward.on_failure", "agent.on_failure", "algorithm.max_logprob_gap"),
    *("stream.transport", "stream.bucket_mib", "stream.verify", "stream.restarts"),
    *("output.", "cluster."),
)

# What of a setting is identity, where it is not all: servers may move, their models may not change.
_PARTS: dict[str, Callable[[Any], Any]] = {"reward.urls": lambda urls: [*servers_by_name(urls)]}


def differences(before: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Settings of two configurations that make them two runs, in words.

    Args:
        before: The one that a run began with, maybe before there were all of today's settings.
        now: The other one.
        defaults: What settings mean that are absent.
    """
    old, new = _flat(defaults) | _flat(before), _flat(now)
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if _identity(key, old) != _identity(key, new) and not key.startswith(_MAY_CHANGE)
    ]


def _identity(key: str, flat: dict[str, Any]) -> Any:
    value = flat.get(key)
    return _PARTS[key](value) if key in _PARTS and value is not None else value


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
