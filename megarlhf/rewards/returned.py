"""Read what a reward function or a reward server returned."""

import math
from collections.abc import Mapping
from typing import Any

from megarlhf.rewards.scorer import CallFailed, Scores


def read_returned(returned: Any, count: int, subject: str) -> Scores:
    """Turn what was returned for ``count`` responses into plain numbers.

    Args:
        returned: One number a response (list, tuple, 1-d tensor or array), or a mapping of
            ``rewards`` (the same), optionally ``scores`` (the same) and ``extra_logs`` (numbers,
            or any number of numbers, by name).
        count: Number of responses.
        subject: Who returned it, for messages.

    Raises:
        CallFailed: It is something else, of another length, or has a reward that is not finite.
    """
    if not isinstance(returned, Mapping):
        rewards = _numbers(returned, count, subject)
        return Scores(rewards, list(rewards))
    if "rewards" not in returned:
        raise CallFailed(f"{subject} returned {dict(returned)!r:.80} without 'rewards'")
    rewards = _numbers(returned["rewards"], count, subject)
    scores = returned.get("scores")
    return Scores(
        rewards,
        list(rewards) if scores is None else _numbers(scores, count, f"{subject}, 'scores':"),
        _logs(returned.get("extra_logs"), subject),
    )


def _numbers(values: Any, count: int, subject: str) -> list[float | None]:
    values = _plain(values)
    if not isinstance(values, list | tuple) or len(values) != count:
        size = f"{len(values)} values" if isinstance(values, list | tuple) else f"{values!r:.80}"
        raise CallFailed(f"{subject} returned {size} for {count} responses")
    return [_finite(value, subject) for value in values]


def _finite(value: Any, subject: str) -> float:
    number = _number(value, subject)
    if not math.isfinite(number):
        raise CallFailed(f"{subject} returned {number}")
    return number


def _number(value: Any, subject: str) -> float:
    try:
        if isinstance(value, str | bytes):  # float() would read some texts
            raise TypeError
        return float(value)
    except Exception:  # of whatever type the value is: TypeError, OverflowError, ...
        raise CallFailed(f"{subject} returned {value!r:.80}, not a number") from None


def _logs(logs: Any, subject: str) -> dict[str, list[float]]:
    """The finite ones of the values: a mean over nothing, as nan, must not end a run."""
    if logs is None:
        return {}
    if not isinstance(logs, Mapping):
        raise CallFailed(f"{subject} returned {logs!r:.80} as extra_logs, not a mapping")
    read = {}
    for name, values in logs.items():
        listed = _plain(values)
        listed = listed if isinstance(listed, list | tuple) else [listed]
        numbers = [_number(value, f"{subject}, extra_logs[{name!r}]:") for value in listed]
        read[str(name)] = [number for number in numbers if math.isfinite(number)]
    return read


def _plain(values: Any) -> Any:
    """Tensors and arrays as lists."""
    return values.tolist() if hasattr(values, "tolist") else values
