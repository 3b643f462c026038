"""From rewards to advantages. G prompts with n samples each: rewards are [G, n]."""

import torch


def group_normalized(rewards: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """(r - mean of its group) / (standard deviation of its group + eps). Float [G, n] -> [G, n].

    GRPO, Shao et al. 2024, arXiv:2402.03300, eq. for outcome supervision; the standard deviation is
    the sample's (n - 1). A group of equal rewards gives zeros.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    normalized = centred / (rewards.std(dim=1, keepdim=True) + eps)
    # The rounded mean of equal rewards may differ from them, and eps may not drown the difference.
    equal = rewards.amin(dim=1, keepdim=True) == rewards.amax(dim=1, keepdim=True)
    return normalized.masked_fill(equal, 0.0)
