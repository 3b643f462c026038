"""A reward model on Megatron ranks as a source of rewards."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from megarlhf.rewards.scorer import Batch, Scores, ScoringFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# From token ids [B][L] to scores by index, on the model's ranks.
ScoreTokens = Callable[[Sequence[Sequence[int]]], dict[int, float]]


class ModelScorer:
    """Scores the very tokens that were sampled or, with a tokenizer of its own, the text.

    Args:
        name: Names its metrics.
        path: The model's directory.
        tokenizer: The model's, if it is not the actor's.
    """

    def __init__(
        self, name: str, path: str, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        self.name, self.where = name, path
        self._tokenizer = tokenizer
        self._score_tokens: ScoreTokens | None = None

    def use(self, score_tokens: ScoreTokens) -> None:
        """Score with these ranks, which are up."""
        self._score_tokens = score_tokens

    def check(self) -> None:
        """Nothing: a run's inputs are checked with the model's configuration."""

    async def start(self) -> None:
        """Nothing to start: the run starts the ranks."""

    async def score(self, batch: Batch) -> Scores:
        """Score a batch, on all ranks together.

        Raises:
            ScoringFailed: A score is not a finite number.
        """
        assert self._score_tokens is not None
        found = await asyncio.to_thread(self._score_tokens, self._tokens(batch))
        values = [found[index] for index in range(len(batch))]
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise ScoringFailed(index, f"the reward model {self.name} gave {value}")
        return Scores(rewards=list(values), scores=list(values))

    async def close(self) -> None:
        """Nothing to end."""

    def _tokens(self, batch: Batch) -> list[list[int]]:
        if self._tokenizer is None:
            return batch.token_ids
        begin = self._tokenizer("")["input_ids"][:1]  # what it puts before a text, if anything
        begin = begin if begin == [self._tokenizer.bos_token_id] else []
        found = self._tokenizer(batch.queries, add_special_tokens=False)["input_ids"]
        return [ids if ids[:1] == begin else [*begin, *ids] for ids in found]
