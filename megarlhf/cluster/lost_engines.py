"""Which of several engines failed, and what they say."""

from typing import Any

from megarlhf.cluster.processes import Processes, ProcessGone
from megarlhf.errors import UserError


def failures_of(
    calls: dict[int, Any], timeout_s: float, processes: Processes
) -> tuple[dict[int, Any], dict[int, str]]:
    """Wait for a call to each of some engines.

    Args:
        calls: By the engine's number.
        timeout_s: The longest to wait for all of them, seconds.
        processes: The engines'.

    Returns:
        The answers, and why the others gave none: they died, failed or did not answer in time.

    Raises:
        UserError: An engine raised one: that is not the engine's fault.
    """
    answers, lost = {}, {}
    _, late = processes.wait(list(calls.values()), len(calls), timeout_s)
    for number, call in calls.items():
        if call in late:
            lost[number] = f"it did not answer within {timeout_s:g} s"
            continue
        try:
            answers[number] = processes.result(call)
        except UserError:
            raise
        except ProcessGone as error:
            lost[number] = str(error)
        except Exception as error:
            lost[number] = f"{type(error).__name__}: {error}"
    return answers, lost
