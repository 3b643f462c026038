"""Correction of the difference between the sampler's probabilities and the trainer's.

The engine that samples and the model that is trained compute in other kernels and dtypes, and with
asynchronous rollouts from other weights. With w = exp(old - rollout log-probability) at each token,
the surrogate is multiplied by a weight made of w; low and high are ``correction_low`` and
``correction_high``, as in OpenRLHF.
"""

import torch

from megarlhf.algo.surrogates import MAX_LOG_RATIO, Tokens
from megarlhf.config.schema import AlgorithmConfig


def correction_weights(
    tokens: Tokens, rollout_logprobs: torch.Tensor, config: AlgorithmConfig
) -> torch.Tensor:
    """[T], without gradient; all 1 for ``none``.

    - ``tis``: clip(w, low, high). Truncated importance sampling, Yao et al. 2025, "Your efficient RL
      framework secretly brings you off-policy RL training" (low = 0 there).
    - ``icepop``: w where low <= w <= high, else 0. IcePop, Ling team 2025, arXiv:2510.18855.
    - ``sequence_mask``: clip(w, low, high) in sequences whose geometric mean of w lies within low and
      high, 0 in the others. Liu et al. 2025, "When speed kills stability".
    """
    log_weight = (tokens.old_logprobs - rollout_logprobs).detach()
    return CORRECTIONS[config.correction](log_weight, tokens, config)


def kl_weights(
    tokens: Tokens, rollout_logprobs: torch.Tensor, config: AlgorithmConfig
) -> torch.Tensor:
    """[T], without gradient: min(w, high) with any correction, 1 for ``none``.

    The KL to the reference is a mean over the trained policy's own tokens. k3 of a token that only the
    sampler would still choose grows like reference / policy; times w that is reference / sampler,
    which is bounded; so w has no lower bound here. As the unbiased KL estimate of DeepSeek-V3.2,
    arXiv:2512.02556.
    """
    if config.correction == "none":
        return torch.ones_like(rollout_logprobs)
    return _weight((tokens.old_logprobs - rollout_logprobs).detach()).clamp(
        max=config.correction_high
    )


def _weight(log_weight: torch.Tensor) -> torch.Tensor:
    return log_weight.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _none(log_weight: torch.Tensor, tokens: Tokens, config: AlgorithmConfig) -> torch.Tensor:
    return torch.ones_like(log_weight)


def _truncated(log_weight: torch.Tensor, tokens: Tokens, config: AlgorithmConfig) -> torch.Tensor:
    return _weight(log_weight).clamp(config.correction_low, config.correction_high)


def _icepop(log_weight: torch.Tensor, tokens: Tokens, config: AlgorithmConfig) -> torch.Tensor:
    weight = _weight(log_weight)
    return torch.where(_within(weight, config), weight, 0.0)


def _sequence_mask(
    log_weight: torch.Tensor, tokens: Tokens, config: AlgorithmConfig
) -> torch.Tensor:
    kept = _within(_weight(tokens.sequence_means(log_weight)), config)
    return torch.where(kept, _truncated(log_weight, tokens, config), 0.0)


def _within(weight: torch.Tensor, config: AlgorithmConfig) -> torch.Tensor:
    return (weight >= config.correction_low) & (weight <= config.correction_high)


CORRECTIONS = {
    "none": _none,
    "tis": _truncated,
    "icepop": _icepop,
    "sequence_mask": _sequence_mask,
}
