"""The policy's loss over the packed tokens of a micro-batch: surrogate, correction, KL, entropy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megarlhf.algo.aggregation import token_weights
from megarlhf.algo.correction import correction_weights, kl_weights
from megarlhf.algo.kl import estimate_kl
from megarlhf.algo.loss import TokenMean
from megarlhf.algo.registry import Algorithm
from megarlhf.algo.surrogates import Tokens
from megarlhf.config.schema import AlgorithmConfig
from megarlhf.data.records import MicroBatch


@dataclass
class PolicyLoss(TokenMean):
    """The loss of a policy-gradient algorithm (a `TokenLoss`).

    correction * surrogate + kl_coef * KL - entropy_coef * entropy at each token. With a correction the
    KL is weighted too: see `kl_weights`.

    Reads the fields ``advantages``, ``loss_weight`` and ``rollout_logprobs``; ``reference_logprobs``
    where there is a KL coefficient; ``old_logprobs`` unless the rollout makes a single optimizer
    step, when the old policy is the current one and the ratio is 1.

    Args:
        algorithm: The registry's row: its surrogate.
        config: Coefficients, with the row's defaults filled in.
        temperature: The sampler's.
        max_tokens: The longest response: the constant of the aggregation ``sequence_sum``.
        sequence_sums: From values [T] and the micro-batch to each sequence's sum [n]; see
            `megarlhf.parallel.context.sequence_sums`.
    """

    algorithm: Algorithm
    config: AlgorithmConfig
    temperature: float
    max_tokens: int
    sequence_sums: Callable[[torch.Tensor, MicroBatch], torch.Tensor]
    needs_entropy: bool = True
    metric_names: tuple[str, ...] = (
        "policy_loss",
        "kl",
        "entropy",
        "clip_fraction",
        "logprob_gap",
        "sampler_kl",
        "correction",
    )

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed with the aggregation's weights; metrics summed over the trained tokens."""
        fields, mask, config = batch.fields, batch.loss_mask, self.config
        old = fields.get("old_logprobs", logprobs.detach())
        rollout = fields["rollout_logprobs"]
        tokens = Tokens(logprobs, old, fields["advantages"], mask, self._sums_at_tokens(batch))
        surrogate, clipped = self.algorithm.surrogate(tokens, config)
        correction = correction_weights(tokens, rollout, config)
        loss = surrogate * correction
        kl = torch.zeros_like(surrogate)
        if "reference_logprobs" in fields:
            kl = estimate_kl(logprobs, fields["reference_logprobs"], config.kl_estimator)
            kl = kl * kl_weights(tokens, rollout, config)
            if config.kl_in == "loss":
                loss = loss + config.kl_coef * kl
        if entropy is None:
            entropy = torch.zeros_like(surrogate)
        if config.entropy_coef:
            loss = loss - config.entropy_coef * entropy
        per_token = {
            "policy_loss": surrogate,
            "kl": kl,
            "entropy": entropy,
            "clip_fraction": clipped.to(mask.dtype),
            "logprob_gap": (old - rollout).abs(),
            "sampler_kl": estimate_kl(rollout, old, "k3"),  # KL(sampler || trainer)
            "correction": correction,
        }
        total = (loss * token_weights(config, batch, self.max_tokens)).sum()
        return total, {name: (value * mask).sum() for name, value in per_token.items()}

    def _sums_at_tokens(self, batch: MicroBatch) -> Callable[[torch.Tensor], torch.Tensor]:
        def sums(values: torch.Tensor) -> torch.Tensor:
            repeats = torch.tensor(batch.lengths, device=values.device)
            of_sequences = self.sequence_sums(values, batch)
            # The size is known here: a GPU would be waited for to tell it.
            return of_sequences.repeat_interleave(repeats, output_size=len(values))

        return sums
