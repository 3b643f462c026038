"""What vLLM's CPU kernels cannot do, or do wrongly. As seen in vllm 0.32.0."""

from typing import Any

import torch

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec

LATENT, ROTARY = 512, 64  # the sizes that its kernel is compiled for: DeepSeek's


def check_kernels(spec: ModelSpec, *, ranks: int, whole_experts: bool) -> None:
    """A CPU can sample from the model.

    Args:
        spec: The model.
        ranks: Of an engine.
        whole_experts: Whether they have whole experts each: ``rollout.expert_parallel``.

    Raises:
        UserError: It cannot.
    """
    if spec.num_experts and whole_experts and ranks > 1:
        # The kernel is given the map of experts and does not look at it: it reads past those it has.
        raise UserError(
            "vLLM on a CPU cannot have whole experts on each rank: its kernel takes those of one "
            "rank for all of them",
            where="rollout.expert_parallel",
            fix="set it to false: each expert is cut, which is as much memory; or use GPUs",
        )
    if not spec.settings.get("multi_latent_attention"):
        return
    sizes = spec.settings["kv_lora_rank"], spec.settings["qk_pos_emb_head_dim"]
    if sizes != (LATENT, ROTARY):
        raise UserError(
            f"vLLM on a CPU knows latents of {LATENT} beside {ROTARY}, and these are of "
            f"{sizes[0]} beside {sizes[1]}",
            where="model.path",
            fix=f"use a model with kv_lora_rank={LATENT} and qk_rope_head_dim={ROTARY}, or GPUs",
        )


def latent_settings(spec: ModelSpec) -> dict[str, Any]:
    """On a CPU, positions enter latent attention by torch's operators.

    The kernel for plain rotary embedding takes a matrix, and where it is given the heads' parts of
    latents it writes something else over them, without an error. Under YaRN there is no kernel.
    """
    if torch.cuda.is_available() or not spec.settings.get("multi_latent_attention"):
        return {}
    return {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
