"""Latent attention in vLLM: beside its projection it keeps products of it, for one token at a time.

The keys' and the values' up-projection lies in ``kv_b_proj`` as in the checkpoint, and the attention
itself keeps its two halves by head, turned so that queries and outputs are multiplied by them. As read
in vllm 0.32.0, ``MLAAttention.process_weights_after_loading``.
"""

import torch
from torch import nn

from megarlhf.errors import UserError


def is_latent(module: nn.Module) -> bool:
    """Whether a module is vLLM's latent attention."""
    return hasattr(module, "kv_b_proj") and hasattr(module, "impl")


def absorb(attention: nn.Module) -> None:
    """Make the halves again from the projection, in the memory that they have."""
    attention.process_weights_after_loading(attention.kv_b_proj.params_dtype)


def projection(attention: nn.Module) -> torch.Tensor:
    """The projection [heads * (key + value), latent], put together from the halves.

    Raises:
        UserError: They are kept in a layout that is not known.
    """
    keys, values = getattr(attention, "W_UK_T", None), getattr(attention, "W_UV", None)
    if keys is None or values is None:
        raise UserError(
            "how this machine's vLLM keeps latent attention is not known here: it cannot be verified",
            where="stream.verify",
            fix="set stream.verify=never",
        )
    # [heads, key, latent] and [heads, latent, value]
    return torch.cat([keys, values.transpose(1, 2)], dim=1).flatten(0, 1)
