"""What happens to the rewards of whole responses before advantages are made of them.

In this order: normalized by their running moments, penalized for length, clipped. Rewards are
float64 [G, n]: G prompts, n samples each.
"""

import math
from typing import Any

import torch

from megarlhf.config.schema import AlgorithmConfig


class RunningMoments:
    """Mean and standard deviation of all rewards seen so far (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """With 1/N; 1 while all were equal."""
        return math.sqrt(self._squares / self.count) if self._squares > 0 else 1.0

    def update(self, rewards: torch.Tensor) -> None:
        """See more rewards, of any shape."""
        new, total = rewards.numel(), self.count + rewards.numel()
        mean = rewards.mean().item()
        apart = mean - self.mean
        self._squares += (rewards - mean).square().sum().item()
        self._squares += apart**2 * self.count * new / total
        self.mean += apart * new / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.count, self.mean, self._squares = state["count"], state["mean"], state["squares"]


def overlong_penalty(
    lengths: torch.Tensor, max_tokens: int, buffer: float, penalty: float
) -> torch.Tensor:
    """0 up to (1 - buffer) max_tokens, then falling linearly to -penalty at max_tokens.

    The soft overlong punishment of DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13.

    Args:
        lengths: [G, n], tokens of each response.
        max_tokens: The most that a response may have.
        buffer: Share of ``max_tokens`` in which the penalty grows, in (0, 1].
        penalty: Its size at the end.
    """
    width = buffer * max_tokens
    return -penalty * ((lengths - (max_tokens - width)) / width).clamp(0.0, 1.0)


def truncated_rewards(
    rewards: torch.Tensor, truncated: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """Rewards of responses cut at the limit: times the coefficient; a negative one takes their place.

    "Stop properly" of ProRL v2, as in OpenRLHF. ``truncated`` is bool [G, n].
    """
    instead = rewards * coefficient if coefficient >= 0 else torch.full_like(rewards, coefficient)
    return torch.where(truncated, instead, rewards)


def shaped_rewards(
    rewards: torch.Tensor,
    lengths: torch.Tensor,
    truncated: torch.Tensor,
    max_tokens: int,
    config: AlgorithmConfig,
    moments: RunningMoments,
) -> torch.Tensor:
    """The rewards that the estimator gets, [G, n]. ``moments`` see the rewards first."""
    if config.normalize_rewards:
        moments.update(rewards)
        rewards = (rewards - moments.mean) / moments.std
    if config.overlong_buffer:
        rewards = rewards + overlong_penalty(
            lengths, max_tokens, config.overlong_buffer, config.overlong_penalty
        )
    if config.length_penalty:
        rewards = rewards - config.length_penalty * lengths / max_tokens
    if config.truncation_coef is not None:
        rewards = truncated_rewards(rewards, truncated, config.truncation_coef)
    if config.reward_clip is not None:
        rewards = rewards.clamp(-config.reward_clip, config.reward_clip)
    return rewards
