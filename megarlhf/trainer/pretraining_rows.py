"""Supervised rows that the actor learns from in every optimizer step of RL (ptx)."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.pretraining_mix import PretrainingMix, mixed
from megarlhf.config.schema import RLConfig
from megarlhf.data.batches import ExampleStream, batch_of
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.data.supervised import load_supervised
from megarlhf.engine.loss import TokenLoss
from megarlhf.trainer.tokenized import with_cache


class PretrainingRows:
    """Draws the rows of each step.

    Args:
        stream: The rows in their order.
        coef: Weight of their loss.
        batch_size: Rows a step.
    """

    def __init__(self, stream: ExampleStream, coef: float, batch_size: int) -> None:
        self._stream, self._coef, self._batch_size = stream, coef, batch_size

    @classmethod
    def read(cls, config: RLConfig, tokenizer: PreTrainedTokenizerBase) -> "PretrainingRows | None":
        """The rows of ``ptx.data``; None if ``ptx.coef`` is 0.

        Raises:
            UserError: The data cannot be read: see `load_supervised`.
        """
        ptx = config.ptx
        if not ptx.coef:
            return None
        data = with_cache(ptx.data, config.output)
        rows = load_supervised(data, tokenizer)
        stream = ExampleStream(rows, seed=config.train.seed, shuffle=data.shuffle)
        return cls(stream, ptx.coef, ptx.batch_size)

    @property
    def highest_token(self) -> int:
        """The highest token id in all rows."""
        return self._stream.items.highest_token

    def mix(
        self, sequences: Sequence[TokenSequence], loss: PolicyLoss
    ) -> tuple[list[TokenSequence], TokenLoss]:
        """An optimizer step's batch with the next rows appended, and the loss over both."""
        rows = batch_of(self._stream.next_batch(self._batch_size)).sequences
        batch = mixed(sequences, rows)
        return batch, PretrainingMix.of(loss, self._coef, batch)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._stream.load_state_dict(state)
