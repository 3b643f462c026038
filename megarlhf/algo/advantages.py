"""From rewards to advantages: an estimator a family of algorithms. Shapes and terms: `credit`.

All but GAE change the outcomes [G, n] by a baseline over the group and give each token the return
from there on; where there are no rewards of single tokens that is the same number at every token.
"""

from typing import Literal

import torch

from megarlhf.algo.credit import (
    Credit,
    Scores,
    discounted_returns,
    generalized_advantages,
    token_rewards,
)
from megarlhf.config.schema import AlgorithmConfig

# -- baselines over a group: float [G, n] -> [G, n] -------------------------------------------------


def group_normalized(rewards: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """(r - mean of its group) / (standard deviation of its group + eps). Float [G, n] -> [G, n].

    GRPO, Shao et al. 2024, arXiv:2402.03300, eq. for outcome supervision; the standard deviation is
    the sample's (n - 1). A group of equal rewards gives zeros.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    normalized = centred / (rewards.std(dim=1, keepdim=True) + eps)
    return normalized.masked_fill(_all_equal(rewards), 0.0)


def group_centred(rewards: torch.Tensor) -> torch.Tensor:
    """r - mean of its group.

    Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, section 3.2; the baseline of REINFORCE++-baseline,
    Hu et al. 2025, arXiv:2501.03262. A group of equal rewards gives zeros.
    """
    return (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(_all_equal(rewards), 0.0)


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """r - mean of the others in its group.

    RLOO, Ahmadian et al. 2024, arXiv:2402.14740, section 3.3. A group of equal rewards gives zeros.
    """
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return (rewards - others).masked_fill(_all_equal(rewards), 0.0)


def _all_equal(rewards: torch.Tensor) -> torch.Tensor:
    # The rounded mean of equal rewards may differ from them, and eps may not drown the difference.
    return rewards.amin(dim=1, keepdim=True) == rewards.amax(dim=1, keepdim=True)


# -- estimators -----------------------------------------------------------------------------------


def grpo(scores: Scores, config: AlgorithmConfig) -> Credit:
    """`group_normalized` outcomes; the other tokens' rewards from there on are added."""
    # In float32, the precision of every earlier version: a seed's run stays what it was, to the bit.
    return _undiscounted(scores, group_normalized(scores.outcome.float()).double())


def dr_grpo(scores: Scores, config: AlgorithmConfig) -> Credit:
    """`group_centred` outcomes."""
    return _undiscounted(scores, group_centred(scores.outcome))


def rloo(scores: Scores, config: AlgorithmConfig) -> Credit:
    """`leave_one_out` outcomes; as in OpenRLHF the KL is a reward of each token, not of the whole."""
    return _undiscounted(scores, leave_one_out(scores.outcome))


def reinforce_plus_plus(scores: Scores, config: AlgorithmConfig) -> Credit:
    """The discounted return: A_t = sum over s >= t of gamma^(s-t) r_s, outcome included.

    REINFORCE++, Hu et al. 2025, arXiv:2501.03262, section 3; its normalization over the global
    batch is `normalized_over_batch`, which the algorithm's row asks for.
    """
    rewards = token_rewards(scores, scores.outcome)
    return Credit(discounted_returns(rewards, scores.mask, config.gamma))


def gae(scores: Scores, config: AlgorithmConfig) -> Credit:
    """`generalized_advantages`; the critic learns A + V. PPO, arXiv:1707.06347, eqs. 11-12."""
    assert scores.values is not None
    advantages = generalized_advantages(
        token_rewards(scores, scores.outcome),
        scores.values,
        scores.mask,
        config.gamma,
        config.gae_lambda,
    )
    return Credit(advantages, torch.where(scores.mask > 0, advantages + scores.values, 0.0))


def _undiscounted(scores: Scores, outcome: torch.Tensor) -> Credit:
    return Credit(discounted_returns(token_rewards(scores, outcome), scores.mask, 1.0))


# -- normalization --------------------------------------------------------------------------------


def normalized_over_batch(
    advantages: torch.Tensor, mask: torch.Tensor, kind: Literal["none", "mean", "std"]
) -> torch.Tensor:
    """Advantages [B, L] minus their mean over all the batch's tokens, and over their deviation.

    ``mean`` subtracts, ``std`` subtracts and divides by sqrt(max(variance, 1e-8)), the variance with
    1/N; ``none`` does neither. REINFORCE++, arXiv:2501.03262, section 3 (and OpenRLHF's for PPO).
    """
    tokens = mask.sum()
    if kind == "none" or tokens == 0:
        return advantages
    centred = (advantages - (advantages * mask).sum() / tokens) * mask
    if kind == "mean":
        return centred
    return centred / (centred.square().sum() / tokens).clamp(min=1e-8).sqrt()
