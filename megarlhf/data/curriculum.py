"""Prompts chosen by their measured difficulty: those that are sometimes solved come more often.

A prompt that is always or never solved gives a group of samples no signal. At a pass rate p the chance
that two samples differ is 2 p (1 - p); Foster et al. 2025, "Learning to Reason at the Frontier of
Learnability", arXiv:2502.12272, prefer prompts by p (1 - p). Here p is a running mean of what training
saw anyway, so nothing is sampled only to be measured.
"""

import heapq
import math
import random
from collections.abc import Sequence
from typing import Any

from megarlhf.config.schema import PromptDataConfig
from megarlhf.data.prompts import PromptStream
from megarlhf.data.records import Prompt, Sample

UNSEEN = 0.5  # the pass rate of a prompt that was not tried, at which it comes most often
MEMORY = 0.5  # how much of the rate before remains when a prompt is tried again
LEAST = 0.02  # the weight of a prompt of rate 0 or 1, so that it comes back some time


class CurriculumStream(PromptStream):
    """Batches drawn without replacement, in proportion to LEAST + 4 p (1 - p) of each prompt.

    Every batch is drawn anew from all prompts, by the keys of Efraimidis and Spirakis 2006 ("Weighted
    random sampling with a reservoir"): u^(1/w) with u uniform, the largest win. They depend on the seed,
    the number of the batch and the pass rates only, all of which a checkpoint holds.

    Args:
        items: The prompts.
        seed: Of the draws.

    Attributes:
        rates: Running pass rate by the prompt's position, of those that were tried.
    """

    def __init__(self, items: Sequence[Prompt], *, seed: int) -> None:
        super().__init__(items, seed=seed)
        self._draws = 0
        self._place = {prompt.index: place for place, prompt in enumerate(items)}
        self.rates: dict[int, float] = {}

    def next_batch(self, n: int) -> list[Prompt]:
        """The next ``n`` prompts; all of them several times if there are fewer.

        Raises:
            ValueError: ``n`` is less than 1.
        """
        if n < 1:
            raise ValueError(f"a batch needs at least one item, not {n}")
        batch: list[Prompt] = []
        while len(batch) < n:
            batch += self._draw(min(n - len(batch), len(self.items)))
        return batch

    def observe(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Take in the scores of prompts: a prompt's mean, each cut to between 0 and 1."""
        for group in groups:
            scores = [sample.score for sample in group if sample.score is not None]
            if not scores:
                continue
            place = self._place[group[0].prompt.index]
            found = math.fsum(min(1.0, max(0.0, score)) for score in scores) / len(scores)
            before = self.rates.get(place)
            self.rates[place] = found if before is None else MEMORY * before + (1 - MEMORY) * found

    def state_dict(self) -> dict[str, Any]:
        """See `ShuffledStream.state_dict`."""
        rates = [[place, rate] for place, rate in self.rates.items()]
        return {**super().state_dict(), "draws": self._draws, "rates": rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ShuffledStream.load_state_dict`."""
        super().load_state_dict(state)
        self._draws = state["draws"]
        self.rates = dict(state["rates"])

    def _draw(self, n: int) -> list[Prompt]:
        draw = random.Random(f"{self.seed}-curriculum-{self._draws}")
        self._draws += 1
        # log u / w is in the order of u^(1/w), and does not underflow.
        keys = [
            math.log(1.0 - draw.random()) / weight(self.rates.get(place, UNSEEN))
            for place in range(len(self.items))
        ]
        chosen = heapq.nlargest(n, range(len(keys)), key=keys.__getitem__)
        return [self.items[place] for place in chosen]


def weight(rate: float) -> float:
    """How often a prompt of this pass rate comes, relative to others."""
    return LEAST + 4.0 * rate * (1.0 - rate)


def prompt_stream(config: PromptDataConfig, prompts: Sequence[Prompt], seed: int) -> PromptStream:
    """The prompts in the order that the configuration asks for."""
    if config.curriculum:
        return CurriculumStream(prompts, seed=seed)
    return PromptStream(prompts, seed=seed, shuffle=config.shuffle)
