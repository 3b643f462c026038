"""Sliding windows, as data: which layers have one, and how long it is."""

from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Mapping[str, Any], int], bool]  # whether a layer, by its number, has a window


def size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Megatron's ``window_size``: tokens seen before a token and after it; None without a window."""
    window = config.get("sliding_window")
    return (window - 1, 0) if window and config.get("use_sliding_window", True) else None


def layers(rule: Rule) -> Callable[[Mapping[str, Any]], list[int] | None]:
    """Megatron's ``window_attn_skip_freq`` from ``layer_types``, or where that is absent by a rule."""

    def derive(config: Mapping[str, Any]) -> list[int] | None:
        if size(config) is None:
            return None
        if types := config.get("layer_types"):
            return [int(kind == "sliding_attention") for kind in types]
        return [int(rule(config, layer)) for layer in range(config["num_hidden_layers"])]

    return derive


EVERY_LAYER = {"window_size": size}
LATER_LAYERS = {  # Qwen's dense models
    "window_size": size,
    "window_attn_skip_freq": layers(lambda config, layer: layer >= config["max_window_layers"]),
}
EVERY_OTHER_LAYER = {  # from the first
    "window_size": size,
    "window_attn_skip_freq": layers(lambda _, layer: layer % 2 == 0),
}
