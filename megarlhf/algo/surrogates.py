"""Surrogate objectives: the policy's loss at each token, whose gradient is the policy gradient.

T packed tokens; ratio r = exp(logprobs - old_logprobs). Each returns the loss [T] and whether its
bound was active, bool [T]; gradients flow through ``logprobs`` only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megarlhf.config.schema import AlgorithmConfig

MAX_LOG_RATIO = 20.0  # beyond it exp overflows soon, and one token would be the whole batch


@dataclass(frozen=True)
class Tokens:
    """What a surrogate sees.

    Attributes:
        logprobs: [T], the current policy's; gradients flow.
        old_logprobs: [T], of the policy that the advantages were estimated for.
        advantages: [T].
        mask: [T], 1 where trained, else 0.
        sum_sequences: From values [T] to the sum over each token's whole sequence [T], also where
            context-parallel ranks share it; differentiable. Collective: all ranks call it or none.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    sum_sequences: Callable[[torch.Tensor], torch.Tensor]

    def sequence_means(self, values: torch.Tensor) -> torch.Tensor:
        """[T]: the mean of ``values`` over the trained tokens of each token's sequence."""
        counts = self.sum_sequences(self.mask).clamp(min=1.0)
        return self.sum_sequences(torch.where(self.mask > 0, values, 0.0)) / counts


Surrogate = Callable[[Tokens, AlgorithmConfig], tuple[torch.Tensor, torch.Tensor]]


def clipped(tokens: Tokens, config: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), and with ``dual_clip`` c no more than -c A.

    PPO, Schulman et al. 2017, arXiv:1707.06347, eq. 7; a clip_high above clip_low is DAPO's
    clip-higher, arXiv:2503.14476, eq. 10; the bound for A < 0 is dual-clip PPO, Ye et al. 2020,
    arXiv:1912.09729, eq. 8.
    """
    log_ratio = tokens.logprobs - tokens.old_logprobs
    return _clipped(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), tokens, config)


def sequence_clipped(tokens: Tokens, config: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """`clipped` with the sequence's ratio at each token: s = exp(mean of log r over its tokens).

    GSPO, Zheng et al. 2025, arXiv:2507.18071, eqs. 5-7. Summed as ``sequence_mean`` it is their
    objective, a term a sequence.
    """
    log_ratio = tokens.sequence_means(tokens.logprobs - tokens.old_logprobs)
    return _clipped(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), tokens, config)


def clipped_weight(tokens: Tokens, config: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log p: the weight is bounded, no token is dropped.

    CISPO, MiniMax 2025, arXiv:2506.13585, eqs. 4-5; sg stops the gradient. clip_low = 1 is no bound.
    """
    ratio = (tokens.logprobs - tokens.old_logprobs).detach()
    ratio = ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    weight = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    return -weight * tokens.advantages * tokens.logprobs, weight != ratio


def _clipped(
    ratio: torch.Tensor, tokens: Tokens, config: AlgorithmConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    plain = ratio * tokens.advantages
    bounded = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * tokens.advantages
    objective, active = torch.minimum(plain, bounded), bounded < plain
    if config.dual_clip is not None:
        least = config.dual_clip * tokens.advantages
        below = (tokens.advantages < 0) & (objective < least)
        objective, active = torch.where(below, least, objective), active | below
    return -objective, active
