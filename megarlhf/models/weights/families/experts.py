"""What mixtures of experts share, as data: routers, experts, shared experts, which layers are which."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megarlhf.models.weights.families import common
from megarlhf.models.weights.families.common import HF, MEGATRON
from megarlhf.models.weights.family import Entry, Tensor
from megarlhf.models.weights.operations import Cut, Replicated, Stacked

DIMS = {
    **common.DIMS,
    "experts": ("num_moe_experts",),
    "expert_ffn": ("moe_ffn_hidden_size",),
}
SHARED_DIMS = {**DIMS, "shared_ffn": ("moe_shared_expert_intermediate_size",)}

# The layers that are no mixture have a plain MLP.
DENSE_LAYERS = tuple(replace(entry, layers="dense") for entry in common.MLP)


def experts(block: str, gate: str, up: str, down: str) -> tuple[Entry, ...]:
    """A router and its experts, whose Hugging Face names differ between families.

    Args:
        block: Name of the block in a layer, e.g. ``mlp``.
        gate: Name of an expert's gate projection, of its up and of its down projection.
        up: See ``gate``.
        down: See ``gate``.
    """
    expert = HF + block + ".experts.{expert}."
    local = MEGATRON + "mlp.experts.local_experts.{expert}."
    return (
        Entry(
            MEGATRON + "mlp.router.weight",
            lambda dims: Replicated(),
            (Tensor(HF + block + ".gate.weight", "experts hidden"),),
            layers="mixture",
        ),
        Entry(
            local + "linear_fc1.weight",
            lambda dims: Stacked(),
            (
                Tensor(expert + gate + ".weight", "expert_ffn hidden"),
                Tensor(expert + up + ".weight", "expert_ffn hidden"),
            ),
            layers="mixture",
        ),
        Entry(
            local + "linear_fc2.weight",
            lambda dims: Cut(1),
            (Tensor(expert + down + ".weight", "hidden expert_ffn"),),
            layers="mixture",
        ),
    )


def shared_experts(name: str) -> tuple[Entry, ...]:
    """An MLP that every token passes beside those it is routed to.

    Args:
        name: Of its module in the ``mlp`` of Hugging Face's layer.
    """
    shared = HF + "mlp." + name + "."
    return (
        Entry(
            MEGATRON + "mlp.shared_experts.linear_fc1.weight",
            lambda dims: Stacked(),
            (
                Tensor(shared + "gate_proj.weight", "shared_ffn hidden"),
                Tensor(shared + "up_proj.weight", "shared_ffn hidden"),
            ),
            layers="mixture",
        ),
        Entry(
            MEGATRON + "mlp.shared_experts.linear_fc2.weight",
            lambda dims: Cut(1),
            (Tensor(shared + "down_proj.weight", "hidden shared_ffn"),),
            layers="mixture",
        ),
    )


SHARED_GATE = (  # the shared experts' output is multiplied by its sigmoid
    Entry(
        MEGATRON + "mlp.shared_experts.gate_weight",
        lambda dims: Replicated(),
        (Tensor(HF + "mlp.shared_expert_gate.weight", "one hidden"),),
        layers="mixture",
    ),
)


def layer_pattern(mixtures: list[bool]) -> int | list[int]:
    """Megatron's ``moe_layer_freq``: 1 where all are mixtures, so that checkpoints stay uniform."""
    return 1 if all(mixtures) else [int(is_mixture) for is_mixture in mixtures]


def sparse_layers(config: Mapping[str, Any]) -> int | list[int]:
    """Qwen's: every ``decoder_sparse_step``-th layer but those of ``mlp_only_layers``."""
    step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
    layers = range(config["num_hidden_layers"])
    return layer_pattern([layer not in dense and (layer + 1) % step == 0 for layer in layers])


def softmax_over_all(config: Mapping[str, Any]) -> bool:
    """Without ``norm_topk_prob`` the chosen experts' weights are of all experts' softmax.

    With it they sum to 1, which is the softmax over the chosen ones only.
    """
    return not config.get("norm_topk_prob", False)
