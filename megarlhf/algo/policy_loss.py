"""The clipped policy loss with a KL term, over the packed tokens of a micro-batch."""

from dataclasses import dataclass

import torch

from megarlhf.algo.kl import estimate_kl
from megarlhf.config.schema import AlgorithmConfig
from megarlhf.data.records import MicroBatch


def clipped_surrogate(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) and whether the clip was active.

    PPO, Schulman et al. 2017, arXiv:1707.06347, eq. 7. All tensors have one shape; ratio =
    exp(logprobs - old_logprobs); gradients flow through ``logprobs``.
    """
    ratio = (logprobs - old_logprobs).exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    return -torch.minimum(plain, clipped), clipped < plain


@dataclass
class PolicyLoss:
    """The loss of a policy-gradient algorithm (a `TokenLoss`).

    Reads the fields ``advantages``, ``loss_weight`` and ``rollout_logprobs``; ``reference_logprobs``
    where there is a KL coefficient; ``old_logprobs`` unless the rollout makes a single optimizer
    step, when the old policy is the current one and the ratio is 1.

    Args:
        config: Coefficients.
        temperature: The sampler's.
    """

    config: AlgorithmConfig
    temperature: float
    needs_entropy: bool = True
    metric_names: tuple[str, ...] = (
        "policy_loss",
        "kl",
        "entropy",
        "clip_fraction",
        "logprob_gap",
    )

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed with ``loss_weight``; metrics summed over the trained tokens."""
        fields, mask = batch.fields, batch.loss_mask
        old = fields.get("old_logprobs", logprobs.detach())
        surrogate, clipped = clipped_surrogate(
            logprobs, old, fields["advantages"], self.config.clip_low, self.config.clip_high
        )
        kl = torch.zeros_like(surrogate)
        if "reference_logprobs" in fields:
            kl = estimate_kl(logprobs, fields["reference_logprobs"], self.config.kl_estimator)
        weight = fields["loss_weight"] * mask
        loss = ((surrogate + self.config.kl_coef * kl) * weight).sum()
        gap = (old - fields["rollout_logprobs"]).abs()
        per_token = {
            "policy_loss": surrogate,
            "kl": kl,
            "entropy": entropy if entropy is not None else torch.zeros_like(kl),
            "clip_fraction": clipped.to(mask.dtype),
            "logprob_gap": gap,
        }
        return loss, {name: (value * mask).sum() for name, value in per_token.items()}
