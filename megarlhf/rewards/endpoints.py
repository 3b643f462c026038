"""Several servers of one reward model: which of them takes the next request."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

SHORTEST_REST_S, LONGEST_REST_S = 1.0, 60.0


@dataclass
class Endpoint:
    """One server.

    Attributes:
        url: Where requests go.
        running: Requests on their way.
        taken: Requests so far.
        failures: In a row, up to now.
        rests_until: It gets no requests before this time unless all are resting.
    """

    url: str
    running: int = 0
    taken: int = 0
    failures: int = 0
    rests_until: float = 0.0


class Endpoints:
    """The least loaded server takes a request; one that failed rests, longer each time.

    Args:
        urls: The servers.
        clock: Seconds; a test gives its own.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._all = [Endpoint(url) for url in urls]
        self._clock = clock

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def next(self) -> Iterator[Endpoint]:
        """The server for a request, which is on its way inside the context."""
        now = self._clock()
        chosen = min(
            self._all, key=lambda one: (max(one.rests_until - now, 0.0), one.running, one.taken)
        )
        chosen.running += 1
        chosen.taken += 1
        try:
            yield chosen
        finally:
            chosen.running -= 1

    def failed(self, endpoint: Endpoint) -> None:
        """It did not answer, or not as a server that is well."""
        rest = min(SHORTEST_REST_S * 2.0 ** min(endpoint.failures, 10), LONGEST_REST_S)
        endpoint.failures += 1
        endpoint.rests_until = self._clock() + rest

    def answered(self, endpoint: Endpoint) -> None:
        """It is well."""
        endpoint.failures, endpoint.rests_until = 0, 0.0
