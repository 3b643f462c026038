"""What an estimator of advantages gets and gives, and the recursions over tokens they share.

G prompts with n samples each make B = G n sequences, ordered group by group, padded to L tokens; all
tensors are float64. Tokens that the policy did not choose (prompt, padding, an environment's) have
mask 0 and take no part: the recursions step over them, so a token is discounted by the policy's
tokens between it and a reward only.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scores:
    """What is known of a rollout when advantages are estimated.

    Attributes:
        outcome: [G, n], the reward of each whole response.
        per_token: [B, L], rewards of single tokens (-coefficient * KL where KL is in the reward).
        mask: [B, L], 1 where the policy chose the token, else 0.
        values: [B, L], the critic's estimate before each token; None without a critic.
    """

    outcome: torch.Tensor
    per_token: torch.Tensor
    mask: torch.Tensor
    values: torch.Tensor | None = None


@dataclass(frozen=True)
class Credit:
    """What an estimator found, 0 outside the mask.

    Attributes:
        advantages: [B, L].
        returns: [B, L], what the critic learns; None without one.
    """

    advantages: torch.Tensor
    returns: torch.Tensor | None = None


def token_rewards(scores: Scores, outcome: torch.Tensor) -> torch.Tensor:
    """[B, L]: the rewards of the tokens, with each response's outcome [G, n] at its last one."""
    mask = scores.mask
    after = mask.flip(1).cumsum(1).flip(1)  # the policy's tokens from here to the end
    last = mask * (after == 1)
    return scores.per_token * mask + last * outcome.reshape(-1, 1)


def discounted_returns(rewards: torch.Tensor, mask: torch.Tensor, gamma: float) -> torch.Tensor:
    """R_t = r_t + gamma R_{t+1} over the policy's tokens. [B, L] -> [B, L].

    The return of REINFORCE, Williams 1992; Sutton and Barto 2018, eq. 3.9.
    """
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        chosen = mask[:, t] > 0
        following = torch.where(chosen, rewards[:, t] + gamma * following, following)
        returns[:, t] = torch.where(chosen, following, 0.0)
    return returns


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> torch.Tensor:
    """A_t = d_t + gamma lambda A_{t+1}, d_t = r_t + gamma V_{t+1} - V_t; V after the last is 0.

    GAE, Schulman et al. 2016, arXiv:1506.02438, eqs. 11-16, over the policy's tokens. All [B, L].
    """
    advantages = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    next_value = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        chosen = mask[:, t] > 0
        error = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(chosen, error + gamma * lam * following, following)
        next_value = torch.where(chosen, values[:, t], next_value)
        advantages[:, t] = torch.where(chosen, following, 0.0)
    return advantages
