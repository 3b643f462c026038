"""Which settings make a run the run that it is."""

from typing import Any

# What may differ when a run goes on: its length, its rhythm, where it runs. All else is its identity;
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
        for model in ("model", "critic", "reference", "teacher")
        for key in _LAYOUT
    ),
    *("model.recompute", "critic.recompute", "critic.export"),
    *("optimizer.offload", "critic.optimizer.offload"),
    *("rollout.engines", "rollout.tensor_parallel", "rollout.placement"),
    *("rollout.cuda_graphs", "rollout.max_sequences", "rollout.share_prompts"),
    *("rollout.gpu_memory_utilization", "rollout.kv_cache_gib", "data.workers", "data.cache_dir"),
    *("reward.workers", "reward.timeout_s", "reward.retries", "output.", "cluster."),
)


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
        if old.get(key) != new.get(key) and not key.startswith(_MAY_CHANGE)
    ]


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
