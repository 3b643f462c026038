"""Which of several engines failed, and what they say."""

from typing import Any

import ray

from megarlhf.errors import UserError


def failures_of(
    calls: dict[int, ray.ObjectRef], timeout_s: float
) -> tuple[dict[int, Any], dict[int, str]]:
    """Wait for a call to each of some engines.

    Args:
        calls: By the engine's number.
        timeout_s: The longest to wait for all of them, seconds.

    Returns:
        The answers, and why the others gave none: they died, failed or did not answer in time.

    Raises:
        UserError: An engine raised one: that is not the engine's fault.
    """
    answers, lost = {}, {}
    _, late = ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout_s)
    for number, call in calls.items():
        if call in late:
            lost[number] = f"it did not answer within {timeout_s:g} s"
            continue
        try:
            answers[number] = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            lost[number] = f"{type(error.cause).__name__}: {error.cause}"
        except ray.exceptions.RayError as error:
            lost[number] = _first_line(error)
    return answers, lost


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
