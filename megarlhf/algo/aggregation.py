"""How the losses of tokens become one number.

The engine divides the summed loss by the global batch's total of the field ``loss_weight``; a loss
sums its tokens with `token_weights`. Both follow from the name:

- ``token_mean``: 1/N sum of all N tokens. DAPO, arXiv:2503.14476, eq. 12.
- ``sequence_mean``: the mean over sequences of the mean over their tokens. GRPO, arXiv:2402.03300.
- ``sequence_sum``: the mean over sequences of the sum over their tokens, over a constant. Dr. GRPO,
  Liu et al. 2025, arXiv:2503.20783, listing 1.

A sequence without a trained token is not counted.
"""

import torch

from megarlhf.config.schema import AlgorithmConfig
from megarlhf.data.records import MicroBatch


def loss_weight(config: AlgorithmConfig, trained: int) -> float:
    """What each of a sequence's ``trained`` tokens adds to the engine's divisor."""
    return 1.0 if config.aggregation == "token_mean" or not trained else 1.0 / trained


def token_weights(config: AlgorithmConfig, batch: MicroBatch, max_tokens: int) -> torch.Tensor:
    """[T], 0 where not trained: what each token's loss counts in the sum.

    Args:
        config: Names the aggregation.
        batch: With the field ``loss_weight``.
        max_tokens: The constant of ``sequence_sum``.
    """
    if config.aggregation == "sequence_sum":
        return batch.loss_mask / max_tokens
    return batch.fields["loss_weight"] * batch.loss_mask
