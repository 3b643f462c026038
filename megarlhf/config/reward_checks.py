"""Rules about the sources of rewards: ``reward.*``."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from megarlhf.config.schema import RewardConfig
from megarlhf.errors import UserError

# The names of a function, and of a model and servers without one.
FUNCTION, MODEL, REMOTE = "function", "model", "remote"
_NAMED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def servers_by_name(urls: Sequence[str]) -> dict[str, list[str]]:
    """The servers of each reward model; those without ``NAME=`` in front serve one model."""
    servers: dict[str, list[str]] = {}
    for text in urls:
        named = _NAMED.fullmatch(text)
        name, url = named.groups() if named else (REMOTE, text)
        servers.setdefault(name, []).append(url)
    return servers


def models_by_name(models: Sequence[str]) -> dict[str, str]:
    """The directory of each reward model on Megatron ranks."""
    named = [(_NAMED.fullmatch(text), text) for text in models]
    return dict(match.groups() if match else (MODEL, text) for match, text in named)


def check_reward(config: RewardConfig) -> None:
    """There is a source, each can be what it says, and has a weight if any has."""
    if config.function is None and not config.urls and not config.models:
        raise UserError(
            "nothing scores the responses",
            where="reward",
            fix="set reward.function to a Python file that defines "
            "reward_func(queries, prompts, labels), or reward.models, or reward.urls",
        )
    if config.function is not None and not Path(config.function).is_file():
        raise UserError(
            f"no such file: {config.function}",
            where="reward.function",
            fix="give a Python file that defines reward_func(queries, prompts, labels)",
        )
    servers, models = servers_by_name(config.urls), models_by_name(config.models)
    _check_servers(servers)
    names = [FUNCTION] * (config.function is not None) + [*models, *servers]
    if len(models) < len(config.models) or len(set(names)) < len(names):
        raise UserError(
            f"two sources have the same name ({', '.join(names)})",
            where="reward.models",
            fix="write NAME=DIR, each with a name of its own",
        )
    if config.weights and len(config.weights) != len(names):
        raise UserError(
            f"{len(config.weights)} weights for {len(names)} sources ({', '.join(names)})",
            where="reward.weights",
            fix="give one for each, in this order, or leave reward.weights out",
        )


def _check_servers(servers: dict[str, list[str]]) -> None:
    if FUNCTION in servers:
        raise UserError(
            f"the name {FUNCTION!r} is that of reward.function",
            where="reward.urls",
            fix="call the servers something else",
        )
    for url in (url for urls in servers.values() for url in urls):
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of the port
            right = False
        if not right:
            raise UserError(
                f"not the address of a server: {url!r}",
                where="reward.urls",
                fix="write http://HOST:PORT/PATH, or NAME=http://HOST:PORT/PATH",
            )
