"""``megarlhf parity``."""

import argparse
import signal
from pathlib import Path
from typing import Any

from megarlhf.commands.numbers import positive, positive_number


def add(commands: Any) -> None:
    """Put it among the commands."""
    what = "check that every parallel layout of a model computes the same function"
    parity = commands.add_parser("parity", help=what, description=what)
    parity.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="Hugging Face directory"
    )
    parity.add_argument(
        "--layouts",
        nargs="*",
        default=(),
        metavar="LAYOUT",
        help="e.g. tp2.sp.pp2.cp2, from tpN ppN vppN cpN epN dpN sp (default: all that make sense)",
    )
    parity.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    parity.add_argument(
        "--steps",
        type=positive,
        default=20,
        help="optimizer steps to compare (default: %(default)s)",
    )
    parity.add_argument(
        "--json", type=Path, metavar="FILE", help="write all measurements to this file"
    )
    parity.add_argument(
        "--max-ranks", type=positive, default=8, help="skip larger layouts (default: %(default)s)"
    )
    parity.add_argument("--seed", type=int, default=0, help="seed of the batch")
    parity.add_argument(
        "--aux-loss", type=float, default=0.0, help="weight of the routers' load-balancing loss"
    )
    parity.add_argument("--z-loss", type=float, default=0.0, help="weight of the routers' z-loss")
    parity.add_argument(
        "--tolerance",
        type=positive_number,
        default=1.0,
        help="factor on docs/parity.md's thresholds (default: %(default)s): large models round more",
    )
    parity.add_argument(
        "--timeout",
        type=positive_number,
        default=600.0,
        help="seconds for each layout (default: %(default)s)",
    )
    parity.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from megarlhf.parity.auxiliary import RoutingLosses
    from megarlhf.parity.tool import Settings, run_parity

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    return run_parity(
        Settings(
            model=arguments.model,
            layouts=tuple(arguments.layouts),
            dtype=arguments.dtype,
            steps=arguments.steps,
            max_ranks=arguments.max_ranks,
            seed=arguments.seed,
            routing=RoutingLosses(arguments.aux_loss, arguments.z_loss),
            tolerance=arguments.tolerance,
            timeout_s=arguments.timeout,
            json=arguments.json,
        )
    )
