"""Estimators of KL(policy || reference) from sampled tokens. Schulman 2020, "Approximating KL"."""

import torch

# With d = log policy - log reference at tokens sampled from the policy:
ESTIMATORS = {
    "k1": lambda d: d,  # unbiased, high variance, may be negative
    "k2": lambda d: 0.5 * d.square(),  # biased, low variance
    "k3": lambda d: torch.expm1(-d) + d,  # unbiased, low variance, never negative
}


def estimate_kl(logprobs: torch.Tensor, reference: torch.Tensor, kind: str) -> torch.Tensor:
    """KL estimate at each token.

    Args:
        logprobs: log p of the sampled tokens under the policy, any shape; gradients flow.
        reference: The same under the reference.
        kind: ``k1``, ``k2`` or ``k3``.
    """
    return ESTIMATORS[kind](logprobs - reference)
