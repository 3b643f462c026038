"""Rotary position embedding for packed sequences."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class PackedLayout:
    """How the tokens of a micro-batch are packed; travels in Megatron's ``packed_seq_params``.

    Attributes:
        lengths: Host integers, length of each sequence; they sum to T.
        position_ids: int64 [T], restarting at each sequence.
        max_length: The longest.
        qkv_format: Read by Megatron; None keeps its q, k, v in [T, 1, heads, dim].
    """

    lengths: tuple[int, ...]
    position_ids: torch.Tensor
    max_length: int
    qkv_format: None = None
    cp_group: None = None


class PackedRotaryEmbedding(nn.Module):
    """Angles for every packed token, looked up once a forward pass.

    Takes the place of Megatron's module: its forward gets the micro-batch's `PackedLayout` where
    Megatron's gets a length, so that one elementwise product serves all sequences of the pack.
    Su et al. 2021, arXiv:2104.09864, in Hugging Face's half-rotated form.

    Args:
        inverse_frequencies: fp32 [dim / 2].
    """

    def __init__(self, inverse_frequencies: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("inverse_frequencies", inverse_frequencies, persistent=False)

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> PackedLayout:
        """Megatron asks for a length; the packed layout says more."""
        return args[4]

    def forward(self, layout: PackedLayout, **_: Any) -> torch.Tensor:
        """Angles [T, 1, 1, dim] for the packed positions."""
        half = torch.outer(layout.position_ids.to(torch.float32), self.inverse_frequencies)
        return torch.cat((half, half), dim=-1)[:, None, None, :]


def inverse_frequencies(hf_config: dict, head_dim: int) -> torch.Tensor:
    """RoPE's inverse frequencies as Hugging Face computes them, scaling included; fp32 [dim / 2].

    Reads both the new (``rope_parameters``) and the old (``rope_theta``, ``rope_scaling``) keys.
    """
    parameters = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta", hf_config.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model(**hf_config)
    frequencies, attention_scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    if attention_scaling != 1.0:
        raise ValueError(f"rope type {kind!r} scales attention, which is not supported")
    return frequencies.to(torch.float32)
