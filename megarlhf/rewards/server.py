"""``megarlhf serve-rm``: serve a scorer over HTTP."""

import asyncio
import signal
from collections.abc import Callable
from functools import partial

from aiohttp import web

from megarlhf.config.schema import RewardConfig
from megarlhf.errors import UserError
from megarlhf.rewards.function_scorer import function_scorer
from megarlhf.rewards.protocol import PATH, BadRequest, read_request, write_response
from megarlhf.rewards.scorer import Scorer, ScoringFailed

LARGEST_BODY = 256 * 2**20  # bytes


def serve_function(config: RewardConfig, host: str, port: int, max_batch: int) -> None:
    """Serve ``reward_func`` of a file until a signal ends it.

    Args:
        config: The file in ``function``, and how it is run.
        host: Address to listen at.
        port: Port to listen at; 0 for any free one, which is printed.
        max_batch: Responses that a request may have.

    Raises:
        UserError: The file does not load, or the port is taken.
    """
    if config.function is None:
        raise ValueError("no function to serve")
    scorer = function_scorer(config.function, config)
    scorer.check()
    asyncio.run(serve(scorer, host, port, max_batch))


async def serve(scorer: Scorer, host: str, port: int, max_batch: int) -> None:
    """Serve any scorer until SIGINT or SIGTERM. Arguments as of `serve_function`.

    Raises:
        UserError: The port is taken.
        Exception: Scoring broke down, in another way than that a response cannot be scored.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _end, ended)
    runner = web.AppRunner(application(scorer, max_batch, partial(_end, ended)), access_log=None)
    try:
        await scorer.start()
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as error:  # taken, not this machine's, not a port's number
            raise UserError(
                f"cannot listen there: {error}",
                where=f"{host}:{port}",
                fix="choose another --port, or --host",
            ) from None
        name, taken = runner.addresses[0][:2]
        shown = f"[{name}]" if ":" in name else name
        print(f"serving {scorer.where} at http://{shown}:{taken}{PATH}", flush=True)
        await ended
    finally:
        await runner.cleanup()
        await scorer.close()


def _end(ended: "asyncio.Future[None]", error: Exception | None = None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)


def application(
    scorer: Scorer, max_batch: int, broken: Callable[[Exception], None]
) -> web.Application:
    """``POST /get_reward`` and ``GET /health``.

    Args:
        scorer: What is served.
        max_batch: Responses that a request may have.
        broken: Told when the scorer raises what it should not; that request gets status 500.
    """

    async def get_reward(request: web.Request) -> web.Response:
        try:
            batch = read_request(await request.read(), max_batch)
        except BadRequest as error:
            return web.json_response({"error": str(error)}, status=400)
        try:
            scores = await scorer.score(batch)
        except ScoringFailed as failure:
            # Not 5xx: it has been tried again here, and the client should look for the response.
            text = f"{failure.reason} {batch.shown(failure.index)}"
            return web.json_response({"error": text, "index": failure.index}, status=422)
        except Exception as error:
            broken(error)
            return web.json_response({"error": "the server broke down: see its log"}, status=500)
        return web.json_response(write_response(scores))

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application(client_max_size=LARGEST_BODY)
    app.add_routes([web.post(PATH, get_reward), web.get("/health", health)])
    return app
