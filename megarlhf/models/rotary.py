"""Rotary position embedding for packed sequences."""

from dataclasses import dataclass
from typing import Any, NamedTuple

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
        turn: How far queries and keys are turned, as the model's embedding of positions says; None where
            the attention does that itself.
        qkv_format: Read by Megatron; None keeps its q, k, v in [T, 1, heads, dim].
    """

    lengths: tuple[int, ...]
    position_ids: torch.Tensor
    max_length: int
    continued: tuple[ContinuedRun, ...] = ()
    turn: "Turn | None" = None
    qkv_format: None = None
    cp_group: None = None
    local_cp_size: None = None


class Turn(NamedTuple):
    """The angles of a pack's positions.

    Attributes:
        cosine: fp32 [T, 1, dim]; both halves are the same.
        sine: Likewise, the first half negative.
    """

    cosine: torch.Tensor
    sine: torch.Tensor

    def of(self, heads: torch.Tensor) -> torch.Tensor:
        """Turn queries or keys [T, n, dim].

        Su et al. 2021, arXiv:2104.09864, in Hugging Face's half-rotated form.
        """
        return _Turned.apply(heads, *(part.to(heads.dtype) for part in self))


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, heads, cosine, sine):  # noqa: ANN001, ANN205
        ctx.save_for_backward(cosine, sine)
        return _turned(heads, cosine, sine)

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        cosine, sine = ctx.saved_tensors
        return _turned(grad, cosine, -sine), None, None


def _turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1).mul_(sine).addcmul_(heads, cosine)


class PackedRotaryEmbedding(nn.Module):
    """The angles of every packed token, looked up once a forward pass.

    Takes the place of Megatron's module: its forward gets the micro-batch's `PackedLayout` where
    Megatron's gets a length, and gives the angles to it, for our attention. Megatron, which would take
    sine and cosine of them in every layer, is told that there is nothing to turn.

    Args:
        inverse_frequencies: fp32 [dim / 2].
    """

    def __init__(self, inverse_frequencies: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("inverse_frequencies", inverse_frequencies, persistent=False)

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> PackedLayout:
        """Megatron asks for a length; the packed layout says more."""
        return args[4]

    def forward(self, layout: PackedLayout, **_: Any) -> None:
        """Give the layout its angles."""
        angles = self.angles(layout)[:, None]
        cosine, sine = angles.cos(), angles.sin()
        layout.turn = Turn(torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1))

    def angles(self, layout: PackedLayout) -> torch.Tensor:
        """fp32 [T, dim / 2], of the packed positions."""
        return torch.outer(layout.position_ids.to(torch.float32), self.inverse_frequencies)


class LatentRotaryEmbedding(PackedRotaryEmbedding):
    """The same for Megatron's latent attention, which turns by itself, and has one in every layer.

    Args:
        inverse_frequencies: fp32 [dim / 2].
        scale: Of sine and cosine.
    """

    def __init__(self, inverse_frequencies: torch.Tensor, scale: float) -> None:
        super().__init__(inverse_frequencies)
        self.scale = scale

    def forward(self, layout: PackedLayout, **_: Any) -> tuple[torch.Tensor, float]:
        """Angles [T, 1, dim] for the packed positions, and the scale."""
        half = self.angles(layout)[:, None]
        return torch.cat((half, half), dim=-1), self.scale


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
