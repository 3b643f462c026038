"""What a loss is to the engine: sums over tokens. Only the engine divides, by the global count."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from megarlhf.algo.loss import Divisors
from megarlhf.data.records import MicroBatch
from megarlhf.data.records import Sequence as TokenSequence

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TokenLoss(Protocol):
    """A loss over what a model says of each token of a packed micro-batch.

    Attributes:
        metric_names: Keys of the metrics it returns, known before the first call.
        needs_entropy: Whether ``entropy`` is wanted.
        reads_trained_only: Whether outputs of tokens that are not trained on change nothing, whatever
            finite numbers they are: a language model then does not compute them.
        from_logits: Finds what is wanted in its place, from this rank's columns of the logits
            [T, Vp], the micro-batch and the tensor-parallel group; None for most losses.
    """

    metric_names: tuple[str, ...]
    needs_entropy: bool
    reads_trained_only: bool
    from_logits: Callable[[torch.Tensor, MicroBatch, "ProcessGroup"], torch.Tensor] | None

    def temperature_at(self, batch: MicroBatch) -> float | torch.Tensor:
        """What the logits are divided by before the softmax: one number, or one a token [T]."""
        ...

    def divisors(self, sequences: Sequence[TokenSequence]) -> Divisors:
        """What the sums over a whole global batch are divided by."""
        ...

    def __call__(
        self, output: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss summed over this micro-batch, and its metrics, summed likewise.

        Args:
            output: fp32 [T]: log-probability of ``batch.targets`` or, of a scalar head, the value.
            entropy: fp32 [T], or what ``from_logits`` found, or None.
            batch: The micro-batch.
        """
        ...
