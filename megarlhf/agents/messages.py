"""What a run and the processes of its agents say to each other."""

from dataclasses import dataclass, field
from typing import Any, Literal

Observation = str | list[int]  # text, or the very token ids


@dataclass(frozen=True)
class Action:
    """What the model answered in a turn: the argument of ``Agent.step``.

    Attributes:
        text: Without special tokens.
        token_ids: The very ids that were sampled, the stop token included.
        finish_reason: ``"stop"``, or ``"length"`` where it was cut at a limit.
        turn: Its number, from 1.
        tokens_left: How many the response may still grow by, observations included.
        prompt: The data's.
        label: What the data holds under ``data.label_key``.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    turn: int
    tokens_left: int
    prompt: str
    label: Any


@dataclass(frozen=True)
class Step:
    """What ``Agent.step`` returned, read.

    Attributes:
        observation: What the model sees next; no text where the episode is over.
        reward: Of this turn.
        done: The episode is over.
        score: Of the episode so far, for filtering by difficulty; None: the sum of the rewards.
        logs: Further numbers, by name.
    """

    observation: Observation
    reward: float
    done: bool
    score: float | None = None
    logs: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a program returned, read. Attributes as of `Step`, for the whole episode."""

    reward: float
    score: float
    logs: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A call of the user's code.

    Attributes:
        episode: Whose it is; an episode has one call at a time.
        method: ``reset``, ``step``, ``close`` or ``run``.
        arguments: Its arguments.
    """

    episode: int
    method: Literal["reset", "step", "close", "run"]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came of a call.

    Attributes:
        episode: Whose call.
        value: What the user's code returned, read; None where it failed.
        failure: Why it failed.
        stuck: The call still has a thread of the process, and will not give it back.
    """

    episode: int
    value: Observation | Step | Verdict | None = None
    failure: "AgentFailed | None" = None
    stuck: bool = False


class AgentFailed(Exception):
    """A call of the user's code did not give what it should.

    Args:
        reason: What happened, beginning with the subject.
        trace: The user's part of the traceback.
        innocent: It was another episode's doing, in the same process.
    """

    def __init__(self, reason: str, trace: str = "", *, innocent: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.trace, self.innocent = reason, trace, innocent

    def __reduce__(self) -> tuple:
        return (AgentFailed, (self.reason, self.trace))
