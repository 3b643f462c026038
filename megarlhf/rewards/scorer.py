"""What scores responses: the interface between a run (or the server) and every kind of reward."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Batch:
    """Responses to score; lists of equal length.

    Attributes:
        queries: Prompt and response as one text.
        prompts: The prompts alone.
        labels: What the data file holds for each under ``data.label_key``.
        token_ids: The queries as they were sampled; empty where only their text is known.
    """

    queries: list[str]
    prompts: list[str]
    labels: list[Any]
    token_ids: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, start: int, stop: int) -> "Batch":
        """The responses from ``start`` up to ``stop``."""
        lists = (self.queries, self.prompts, self.labels, self.token_ids)
        return Batch(*(values[start:stop] for values in lists))

    def shown(self, index: int) -> str:
        """One response, for a message."""
        prompt, query = self.prompts[index], self.queries[index]
        response = query.removeprefix(prompt)
        return f"for the prompt {prompt!r:.300} and the response {response!r:.300}"


@dataclass
class Scores:
    """The outcome for a batch of n responses.

    Attributes:
        rewards: A number for each response; None for one that could not be scored.
        scores: The same, for filtering prompts by difficulty (usually from 0 to 1).
        logs: Any number of values for each further thing the source reports (``extra_logs``).
        failures: Why responses have no reward, by index.
        retries: Calls that were made again.
    """

    rewards: list[float | None]
    scores: list[float | None]
    logs: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    retries: int = 0

    @classmethod
    def none_yet(cls, count: int) -> "Scores":
        """Nothing is scored."""
        return cls([None] * count, [None] * count)

    def put(self, start: int, part: "Scores") -> None:
        """Enter what one call gave for the responses from ``start`` on."""
        stop = start + len(part.rewards)
        self.rewards[start:stop], self.scores[start:stop] = part.rewards, part.scores
        for name, values in part.logs.items():
            self.logs.setdefault(name, []).extend(values)


class Scorer(Protocol):
    """One source of rewards.

    Attributes:
        name: Names its metrics.
        where: Its file or address, for messages.
    """

    name: str
    where: str

    def check(self) -> None:
        """Find what is wrong with it before anything is started. Comes before all else.

        Raises:
            UserError: It cannot serve.
        """

    async def start(self) -> None:
        """Start what `score` needs; `UserError` where that fails."""

    async def score(self, batch: Batch) -> Scores:
        """Score a batch; may be called again before it has returned.

        Raises:
            ScoringFailed: A response cannot be scored, and failures are to stop the run. Otherwise
                they stand in the result.
        """

    async def close(self) -> None:
        """End what `start` started, even if it failed half-way or was not called."""


class CallFailed(Exception):
    """One call of a function or server did not give a number for every response.

    Args:
        reason: What happened, beginning with the subject.
        again: The same call may work a little later, so it is repeated before it is taken apart.
        split: A response of the call may be the cause, so each is tried by itself in the end.
    """

    def __init__(self, reason: str, *, again: bool = False, split: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.again, self.split = reason, again, split

    def __reduce__(self) -> tuple:
        return (_rebuild, (self.reason, self.again, self.split))


def _rebuild(reason: str, again: bool, split: bool) -> CallFailed:
    return CallFailed(reason, again=again, split=split)


class ScoringFailed(Exception):
    """A response could not be scored, however often it was tried.

    Args:
        index: Which of the batch.
        reason: What happened the last time.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index, self.reason = index, reason
