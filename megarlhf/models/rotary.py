"""Rotary position embedding for packed sequences."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megarlhf.models.weights import rope
from megarlhf.parallel.continued import ContinuedRun


@dataclass
class PackedLayout:
    """How the tokens of a micro-batch are packed; travels in Megatron's ``packed_seq_params``.

    Attributes:
        lengths: Host integers, length of each sequence; they sum to T.
        position_ids: int64 [T], restarting at each sequence.
        max_length: The longest.
        continued: Those that go on from a shared beginning.
        qkv_format: Read by Megatron; None keeps its q, k, v in [T, 1, heads, dim].
    """

    lengths: tuple[int, ...]
    position_ids: torch.Tensor
    max_length: int
    continued: tuple[ContinuedRun, ...] = ()
    qkv_format: None = None
    cp_group: None = None
    local_cp_size: None = None


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


class LatentRotaryEmbedding(PackedRotaryEmbedding):
    """The same for Megatron's latent attention, which has one of its own in every layer.

    Args:
        inverse_frequencies: fp32 [dim / 2].
        scale: Of sine and cosine.
    """

    def __init__(self, inverse_frequencies: torch.Tensor, scale: float) -> None:
        super().__init__(inverse_frequencies)
        self.scale = scale

    def forward(self, layout: PackedLayout, **_: Any) -> tuple[torch.Tensor, float]:
        """Angles [T, 1, dim] for the packed positions, and the scale."""
        return super().forward(layout)[:, 0], self.scale


def frequencies(hf_config: dict, head_dim: int) -> tuple[torch.Tensor, float]:
    """RoPE's inverse frequencies as Hugging Face computes them, scaling included; fp32 [dim / 2].

    And the factor of sine and cosine (YaRN's, Peng et al. 2023, arXiv:2309.00071; otherwise 1).
    """
    found = rope.parameters(hf_config)
    if found["rope_type"] == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / found["rope_theta"] ** exponents, 1.0
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model(**hf_config)
    inverse, scale = ROPE_INIT_FUNCTIONS[found["rope_type"]](config, torch.device("cpu"))
    return inverse.to(torch.float32), scale
