"""Telling the person who runs the job what happened when a process is lost."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megarlhf.cluster.processes import NoAnswer, Processes, ProcessGone
from megarlhf.errors import ProcessLost

GRACE_S = 5.0  # in which it is seen that a process is gone whose peers have failed already
GO_ON = "the newest checkpoint in output.dir is intact: the same command goes on from there"


@contextmanager
def explained() -> Iterator[None]:
    """Turn the loss of a process, or one that does not start, into an error for people.

    Raises:
        ProcessLost: A process is gone or did not come up. What a process itself raised goes through
            unchanged.
    """
    try:
        yield
    except NoAnswer as error:
        raise ProcessLost(
            "the ranks and engines were not ready in time",
            where="cluster.start_timeout_s",
            fix="see that the cluster has the CPUs or GPUs that they ask for, or raise it",
        ) from error
    except ProcessGone as error:
        raise ProcessLost(str(error), fix=f"see its last output above; {GO_ON}") from error


def culprit(error: Exception, others: Sequence[Any], processes: Processes) -> Exception:
    """The cause of a failure: a rank whose peer was killed fails too, and may be heard of first.

    Args:
        error: What was raised first.
        others: References of the calls that were waited for together with it.
        processes: Where the calls run.
    """
    if isinstance(error, ProcessGone):
        return error
    done, _ = processes.wait(others, len(others), GRACE_S)
    for reference in done:
        try:
            processes.result(reference)
        except ProcessGone as gone:
            return gone
        except Exception:
            continue
    return error


def wait_for_all(
    references: Sequence[Any], processes: Processes, timeout_s: float | None = None
) -> list[Any]:
    """Every result, in order; raises as soon as any of them failed.

    Args:
        references: Of the calls to wait for.
        processes: Where the calls run.
        timeout_s: The longest to wait between two of them, seconds; None: as long as it takes.

    Raises:
        NoAnswer: Nothing came for so long.
        Exception: What a call raised.
    """
    left = list(references)
    while left:
        done, left = processes.wait(left, 1, timeout_s)
        if not done:
            raise NoAnswer(f"{len(left)} gave no answer in {timeout_s:g} s")
        for reference in done:
            try:
                processes.result(reference)
            except Exception as error:
                cause = culprit(error, left, processes)
                raise cause from cause.__cause__
    return [processes.result(reference) for reference in references]
