"""An OpenAI-compatible endpoint on loopback: every key is a session, and what it asks is recorded."""

import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from megarlhf.agents.answers import answer_body, chat_choice, events, text_choice
from megarlhf.agents.loopback import HOST
from megarlhf.agents.messages import AgentFailed
from megarlhf.agents.requests import Reader, Request
from megarlhf.agents.session import Refused, Session
from megarlhf.agents.tokens import Tokens
from megarlhf.data.records import Sample
from megarlhf.data.templates import InputTemplate
from megarlhf.errors import UserError
from megarlhf.rollout.settings import Sampling

LARGEST_BODY = 64 * 2**20  # bytes
MODEL = "policy"


class Endpoint:
    """Serves ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``.

    Args:
        tokens: The tokenizer.
        template: The chat template; None: there is none.

    Attributes:
        url: What programs take as the base URL, once it is started.
    """

    def __init__(self, tokens: Tokens, template: InputTemplate | None) -> None:
        self._tokens, self._reader = tokens, Reader(template)
        self._sessions: dict[str, tuple[Session, Sampling]] = {}
        self._count = itertools.count(1)

    async def start(self) -> None:
        """Listen at a free port."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._text),
                web.get("/v1/models", self._models),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}/v1"

    async def close(self) -> None:
        """Listen no more."""
        if hasattr(self, "_runner"):
            await self._runner.cleanup()

    @contextmanager
    def session(self, session: Session, sampling: Sampling) -> Iterator[str]:
        """A key that is good for the context."""
        key = secrets.token_urlsafe(24)
        self._sessions[key] = session, sampling
        try:
            yield key
        finally:
            del self._sessions[key]

    async def _chat(self, request: web.Request) -> web.Response:
        return await self._answered(request, "chat.completion", self._reader.chat, chat_choice)

    async def _text(self, request: web.Request) -> web.Response:
        return await self._answered(request, "text_completion", self._reader.text, text_choice)

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "megarlhf"}
        return web.json_response({"object": "list", "data": [model]})

    async def _answered(
        self,
        request: web.Request,
        kind: str,
        read: Callable[[bytes, Sampling], Request],
        choice: Callable[[Sample, Request, Tokens], dict[str, Any]],
    ) -> web.Response:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if key not in self._sessions:
            return _error(401, "no session has this API key", "invalid_api_key")
        session, sampling = self._sessions[key]
        try:
            wanted = read(await request.read(), sampling)
            session.overridden += wanted.overridden
            answer, prompt_tokens = await session.complete(
                wanted.prompt, wanted.max_tokens, special=wanted.special
            )
        except (Refused, AgentFailed) as refused:
            return _error(400, str(refused), getattr(refused, "code", None))
        except UserError as error:  # of the engines: the run ends, whatever the program does now
            session.error = error
            return _error(500, str(error), None)
        body = answer_body(
            kind, choice(answer, wanted, self._tokens), answer, prompt_tokens, next(self._count)
        )
        if wanted.stream:
            return web.Response(body=events(body), content_type="text/event-stream")
        return web.json_response(body)


def _error(status: int, message: str, code: str | None) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status)
