"""What vLLM's CPU kernels cannot do, or do wrongly, with latent attention. As seen in vllm 0.32.0."""

from typing import Any

import torch

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec

LATENT, ROTARY = 512, 64  # the sizes that its kernel is compiled for: DeepSeek's


def check_kernels(spec: ModelSpec) -> None:
    """A CPU can sample from the model.

    Raises:
        UserError: It cannot.
    """
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
