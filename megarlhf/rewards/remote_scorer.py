"""A reward model behind HTTP as a source of rewards."""

import asyncio
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp

from megarlhf.config.schema import RewardConfig
from megarlhf.errors import UserError
from megarlhf.rewards.endpoints import Endpoint, Endpoints
from megarlhf.rewards.parts import Policy, score_in_parts
from megarlhf.rewards.protocol import read_response, shown, write_request
from megarlhf.rewards.scorer import Batch, CallFailed, Scores

REQUESTS_PER_URL = 2  # one is computed while the next is on its way
CONNECT_TIMEOUT_S = 10.0
FIRST_PAUSE_S = 1.0
HEADERS = {"Content-Type": "application/json"}


class RemoteScorer:
    """Asks servers that all serve the same model, by the protocol of `megarlhf.rewards.protocol`.

    Args:
        name: Names its metrics.
        urls: The servers; requests are spread over them, and one that fails is avoided for a while.
        config: Sizes, timeout and retries.
    """

    def __init__(self, name: str, urls: Sequence[str], config: RewardConfig) -> None:
        self.name, self.where = name, ", ".join(urls)
        self._urls, self._endpoints = urls, Endpoints(urls)
        self._timeout_s = config.timeout_s
        self._policy = Policy(
            batch_size=config.batch_size,
            retries=config.retries,
            pause_s=FIRST_PAUSE_S,
            stop=config.on_failure == "stop",
        )
        self._slots = REQUESTS_PER_URL * len(urls)
        self._session: aiohttp.ClientSession | None = None

    def check(self) -> None:
        """Every server accepts a connection."""
        for url in self._urls:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            try:
                socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT_S).close()
            except (OSError, UnicodeError) as error:  # the latter of a name that cannot be one
                raise UserError(
                    f"no reward server answers there: {error}",
                    where=url,
                    fix="start it (megarlhf serve-rm serves a function), or correct reward.urls",
                ) from None

    async def start(self) -> None:
        """Open the HTTP session."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            headers=HEADERS,
            # One left open from the last step may just be closed by the server: take a new one.
            connector=aiohttp.TCPConnector(force_close=True),
        )
        self._free = asyncio.Semaphore(self._slots)

    async def score(self, batch: Batch) -> Scores:
        """Score a batch, in requests of ``reward.batch_size`` responses."""
        return await score_in_parts(batch, self._call, self._slots, self._policy)

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    async def _call(self, part: Batch) -> Scores:
        body = write_request(part)
        async with self._free:
            with self._endpoints.next() as endpoint:
                return read_response(await self._post(endpoint, body), len(part), endpoint.url)

    async def _post(self, endpoint: Endpoint, body: bytes) -> bytes:
        assert self._session is not None, "start() comes first"
        try:
            async with self._session.post(endpoint.url, data=body) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._endpoints.failed(endpoint)
            reason = str(error) or f"nothing within {self._timeout_s:g} s (reward.timeout_s)"
            raise CallFailed(
                f"{endpoint.url} did not answer: {reason}", again=True, split=False
            ) from error
        ill = response.status >= 500 or response.status in (408, 429)
        (self._endpoints.failed if ill else self._endpoints.answered)(endpoint)
        if response.status != 200:
            raise CallFailed(
                f"{endpoint.url} answered with status {response.status}: {shown(answer)}", again=ill
            )
        return answer
