"""``megarlhf demo``."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Put it among the commands."""
    what = "make a small model and improve it with RL, end to end"
    demo = commands.add_parser("demo", help=what, description=what)
    demo.add_argument("--dir", default="runs/demo", help="output directory (default: %(default)s)")
    demo.add_argument(
        "--seed", type=int, default=1, help="seed of the weights and the run (default: %(default)s)"
    )
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from megarlhf.demo.run import run_demo

    return run_demo(arguments.dir, arguments.seed)
