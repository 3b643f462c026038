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

    A text does not say how its response ended. It is scored as a finished one, closed by the
    tokenizer's EOS, as ``megarlhf rm`` closes the answers that it learns from.

    Args:
        name: Names its metrics.
        path: The model's directory.
        tokenizer: The model's, if it is not the actor's.
        longest: Tokens that a text may have; None: any number.
    """

    def __init__(
        self,
        name: str,
        path: str,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        longest: int | None = None,
    ) -> None:
        self.name, self.where = name, path
        self._tokenizer, self._longest = tokenizer, longest
        self._score_tokens: ScoreTokens | None = None
        self._ranks_are_busy = asyncio.Lock()  # all of them take part in every call

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
            ScoringFailed: A score is not a finite number, a text has no tokens or too many.
        """
        assert self._score_tokens is not None
        tokens = self._tokens(batch)
        async with self._ranks_are_busy:
            found = await asyncio.to_thread(self._score_tokens, tokens)
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
        return [self._whole(index, ids, begin) for index, ids in enumerate(found)]

    def _whole(self, index: int, ids: list[int], begin: list[int]) -> list[int]:
        if not ids:
            raise ScoringFailed(index, "the text has no tokens")
        eos = self._tokenizer.eos_token_id
        end = [] if eos is None or ids[-1] == eos else [eos]
        whole = [*([] if ids[:1] == begin else begin), *ids, *end]
        if self._longest is not None and len(whole) > self._longest:
            raise ScoringFailed(
                index, f"{len(whole)} tokens are more than the {self._longest} of {self.where}"
            )
        return whole
