"""All sources of a run's rewards together: weighted sum, metrics, what happens to failures."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from megarlhf.data.records import Sample
from megarlhf.errors import UserError
from megarlhf.rewards.scorer import Batch, Scorer, Scores, ScoringFailed
from megarlhf.rewards.tally import Tally
from megarlhf.rewards.together import together


class Rewards:
    """Scores samples; a context manager that starts the sources and ends them.

    The reward of a sample is the sum of its sources' times their weights. It has an event loop of
    its own, so it is called like any function.

    Args:
        scorers: The sources.
        weights: One for each.
    """

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float]) -> None:
        # Tasks start in this order: a function in this process, which blocks the others, is done
        # before requests are sent and their time is counted.
        self.scorers, self.weights = tuple(scorers), tuple(weights)
        self._runner = asyncio.Runner()
        self._one_at_a_time = threading.Lock()
        self._scoring: asyncio.Task | None = None

    def check(self) -> None:
        """Find what is wrong with the sources before anything is started.

        Raises:
            UserError: A file does not load, a server is not there.
        """
        for scorer in self.scorers:
            scorer.check()

    def __enter__(self) -> "Rewards":
        with ExitStack() as stack:
            stack.callback(self._runner.close)
            stack.callback(lambda: self._runner.run(self._close()))
            self._runner.run(self._start())
            self._exit = stack.pop_all()  # all is up: keep it until the run ends
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def score(self, samples: Sequence[Sample]) -> Tally:
        """Set ``reward`` and ``score`` of every sample; they stay None where a source failed.

        Threads that call it at the same time take turns.

        Raises:
            UserError: A response cannot be scored and ``reward.on_failure`` is ``stop``, or those to
                many prompts in a row cannot; the prompt is shown.
        """
        batch = Batch(
            [sample.prompt.text + sample.text for sample in samples],
            [sample.prompt.text for sample in samples],
            [sample.prompt.label for sample in samples],
            [[*sample.prompt.token_ids, *sample.response_ids] for sample in samples],
        )
        with self._one_at_a_time:
            outcomes = self._runner.run(self._scored(batch))
        failures = {i: why for outcome in outcomes for i, why in outcome.failures.items()}
        for index, sample in enumerate(samples):
            if index not in failures:
                sample.reward = self._weighted([outcome.rewards[index] for outcome in outcomes])
                sample.score = self._weighted([outcome.scores[index] for outcome in outcomes])
        tally = self._tally(outcomes, dropped=len(failures))
        for index, why in sorted(failures.items())[:1]:
            tally.failure = f"{why} {batch.shown(index)}"
        return tally

    def cancel(self) -> None:
        """Let a `score` that another thread waits for raise `asyncio.CancelledError`."""
        if self._scoring is not None:
            self._runner.get_loop().call_soon_threadsafe(self._scoring.cancel)

    async def _start(self) -> None:
        await together(scorer.start() for scorer in self.scorers)

    async def _close(self) -> None:
        await together(scorer.close() for scorer in self.scorers)

    async def _scored(self, batch: Batch) -> list[Scores]:
        self._scoring = asyncio.current_task()
        return await together(_scored_by(scorer, batch) for scorer in self.scorers)

    def _weighted(self, values: Sequence[float | None]) -> float:
        # A value that is None here is a mistake of ours; it raises and does not count as 0.
        return sum(w * v for w, v in zip(self.weights, values, strict=True))

    def _tally(self, outcomes: Sequence[Scores], dropped: int) -> Tally:
        tally = Tally(samples=len(outcomes[0].rewards), dropped=dropped)
        for scorer, outcome in zip(self.scorers, outcomes, strict=True):
            tally.retries += outcome.retries
            given = [reward for reward in outcome.rewards if reward is not None]
            tally.values[f"reward_from_{scorer.name}"] = given
            for key, values in outcome.logs.items():
                tally.values[f"extra_{scorer.name}_{key}"] = values
        return tally


async def _scored_by(scorer: Scorer, batch: Batch) -> Scores:
    try:
        return await scorer.score(batch)
    except ScoringFailed as failure:
        raise UserError(
            f"{failure.reason} {batch.shown(failure.index)}",
            where=scorer.where,
            fix="make it give a number for every response, or set reward.on_failure=drop; the same "
            "command goes on",
        ) from failure
