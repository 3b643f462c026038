"""``megarlhf serve-rm``."""

import argparse
import json
from typing import Any

from megarlhf.commands.numbers import positive, positive_number
from megarlhf.config import loader, schema
from megarlhf.errors import UserError


def add(commands: Any) -> None:
    """Put it among the commands."""
    defaults = schema.RewardConfig()
    what = "serve a reward model, or a reward function, over HTTP (for reward.urls)"
    serve = commands.add_parser("serve-rm", help=what, description=what)
    source = serve.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR", help="serve this reward model, on Megatron ranks")
    source.add_argument("--function", metavar="FILE", help="serve reward_func of this Python file")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: %(default)s, this machine only)",
    )
    serve.add_argument(
        "--port",
        type=int,
        default=5000,
        help="port to listen at; 0: any free one (default: %(default)s)",
    )
    serve.add_argument(
        "--workers",
        type=positive,
        default=defaults.workers,
        help="processes that run a function (default: %(default)s)",
    )
    serve.add_argument(
        "--batch-size",
        type=positive,
        default=defaults.batch_size,
        help="most responses in one call (default: %(default)s)",
    )
    serve.add_argument(
        "--timeout",
        type=positive_number,
        default=defaults.timeout_s,
        help="seconds that a call of a function may take (default: %(default)s)",
    )
    serve.add_argument(
        "--max-batch",
        type=positive,
        default=1024,
        help="most responses in a request (default: %(default)s)",
    )
    serve.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of rl for a model, e.g. reward.parallel.tensor=2 cluster.reward_ranks=2",
    )
    serve.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.model is not None:
        return _serve_model(arguments)
    from megarlhf.rewards.server import serve_function

    if arguments.overrides:
        raise UserError(
            f"settings are for --model: {' '.join(arguments.overrides)}", where="command line"
        )
    config = schema.RewardConfig(
        function=arguments.function,
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        timeout_s=arguments.timeout,
        retries=1,  # clients repeat requests too
    )
    serve_function(config, arguments.host, arguments.port, arguments.max_batch)
    return 0


def _serve_model(arguments: argparse.Namespace) -> int:
    from megarlhf.trainer.start import serve_model

    path = arguments.model
    own = [f"model.path={path}", f"reward.models=[{json.dumps(path)}]"]  # a comma may be in it
    config = loader.load(schema.RLConfig, None, [*arguments.overrides, *own])
    serve_model(config, arguments.host, arguments.port, arguments.max_batch)
    return 0
