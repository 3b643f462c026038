"""``megarlhf plan``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megarlhf.commands.numbers import positive, positive_number

_LISTS = ("overrides", "calibrate")


def add(commands: Any, methods: Sequence[str]) -> None:
    """Put it among the commands.

    Args:
        commands: Of the command line.
        methods: The commands whose runs are planned.
    """
    what = "predict whether a run fits its GPUs, and how fast it is"
    plan = commands.add_parser("plan", help=what, description=what)
    plan.add_argument("--config", type=Path, metavar="FILE", help="the run's YAML file")
    plan.add_argument(
        "--method",
        choices=methods,
        help="the planned command (default: the one that the file's directory is named for, or rl)",
    )
    plan.add_argument(
        "--model-config",
        type=Path,
        metavar="DIR",
        help="directory of a config.json to use instead of model.path",
    )
    plan.add_argument(
        "--prompt-tokens", type=positive, help="mean length, for the time (default: the longest)"
    )
    plan.add_argument(
        "--response-tokens", type=positive, help="mean length, for the time (default: the longest)"
    )
    plan.add_argument(
        "--calibrate",
        nargs="*",
        default=(),
        metavar="NAME=VALUE",
        help="override constants: see docs/scale.md",
    )
    plan.add_argument(
        "--skew",
        type=positive_number,
        default=1.0,
        help="mixtures: times the even share of tokens that a rank's experts get (%(default)s)",
    )
    plan.add_argument(
        "--memory",
        type=positive_number,
        metavar="GIB",
        help="of each GPU, what the run may take (all of it)",
    )
    plan.add_argument("--exact", action="store_true", help="run all layers of deep stages")
    plan.add_argument("--search", action="store_true", help="rank layouts for these GPUs")
    plan.add_argument("--json", type=Path, metavar="OUT", help="write the whole plan here")
    plan.add_argument("--html", type=Path, metavar="OUT", help="write a page with charts here")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as of the run")
    plan.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from megarlhf.plan.tool import Settings, run_plan

    names = (field for field in Settings.__dataclass_fields__ if field not in _LISTS)
    lists = {name: tuple(getattr(arguments, name)) for name in _LISTS}
    return run_plan(Settings(**{name: getattr(arguments, name) for name in names}, **lists))
