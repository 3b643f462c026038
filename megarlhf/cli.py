"""The command line: ``megarlhf COMMAND --config FILE key=value ...``."""

import argparse
import importlib
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarlhf import __version__, launcher
from megarlhf.config import loader, schema
from megarlhf.config.wording import describe
from megarlhf.errors import UserError, cannot_write, disk_error


@dataclass(frozen=True)
class Command:
    """A command with a configuration.

    Attributes:
        config: The dataclass that holds its settings.
        runner: ``module:function`` that takes the configuration and returns a summary.
        help: One line.
    """

    config: type
    runner: str
    help: str


COMMANDS = {
    "rl": Command(
        schema.RLConfig,
        "megarlhf.trainer.start:rl",
        "reinforcement learning, on Ray or under torchrun",
    ),
    "generate": Command(
        schema.RLConfig,
        "megarlhf.trainer.start:generate",
        "sample and score responses with the settings of rl, and keep the best and pairs of them",
    ),
    **{
        name: Command(
            config,
            "megarlhf.trainer.offline:train",
            f"{what}; run it under torchrun (launch/torchrun.sh)",
        )
        for name, config, what in (
            ("sft", schema.SFTConfig, "supervised fine-tuning"),
            ("rm", schema.RMConfig, "a reward model from pairs of answers"),
            ("prm", schema.PRMConfig, "a process reward model from labelled steps"),
            ("dpo", schema.DPOConfig, "direct preference optimization of pairs (DPO, cDPO, IPO)"),
            ("kto", schema.KTOConfig, "preference optimization of single answers (KTO)"),
            ("kd", schema.KDConfig, "knowledge distillation from a larger model"),
        )
    },
}

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    2: the input is wrong; 3: a process of the run is gone; 130: stopped by a signal.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # the libraries' notices; python -W shows them
    arguments = _parse(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        cause = _user_error_behind(error)
        if cause is None:
            launcher.record_failure(traceback.format_exc())
            raise
        launcher.record_failure(f"megarlhf: error: {cause}")
        _complain(cause)
        return cause.status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; settings may stand before, between and behind the options."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    takes_settings = hasattr(arguments, "overrides")
    wrong = [word for word in rest if not takes_settings or word.startswith("-") or "=" not in word]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megarlhf", description=__doc__)
    parser.add_argument("--version", action="version", version=f"megarlhf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.add_argument("--config", metavar="FILE", help="YAML file with settings")
        sub.add_argument(
            "--help-config", action="store_true", help="list every setting with its default"
        )
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="settings, e.g. optimizer.lr=1e-6"
        )
        sub.set_defaults(run=_run_configured, command=command)
    demo = commands.add_parser("demo", help="make a small model and improve it with RL, end to end")
    demo.add_argument("--dir", default="runs/demo", help="where to (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=1)
    demo.set_defaults(run=_run_demo)
    _add_parity(commands)
    _add_serve_rm(commands)
    _add_plan(commands)
    _add_merge_lora(commands)
    return parser


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="say whether a run fits its GPUs, and how fast it is")
    plan.add_argument("--config", type=Path, metavar="FILE", help="the run's YAML file")
    plan.add_argument(
        "--method",
        choices=("rl", *(name for name in COMMANDS if name not in ("rl", "generate"))),
        help="the file's command (default: what its directory is named for, or rl)",
    )
    plan.add_argument(
        "--model-config", type=Path, metavar="DIR", help="config.json, in place of model.path"
    )
    plan.add_argument("--prompt-tokens", type=_positive, help="mean, for the time (the longest)")
    plan.add_argument("--response-tokens", type=_positive, help="mean, for the time (the longest)")
    plan.add_argument(
        "--calibrate", nargs="*", default=(), metavar="NAME=VALUE", help="constants: docs/scale.md"
    )
    plan.add_argument(
        "--skew",
        type=_positive_number,
        default=1.0,
        help="mixtures: times the even share of tokens that a rank's experts get (%(default)s)",
    )
    plan.add_argument("--exact", action="store_true", help="run all layers of deep stages")
    plan.add_argument("--search", action="store_true", help="rank layouts for these GPUs")
    plan.add_argument("--json", type=Path, metavar="OUT", help="write the whole plan here")
    plan.add_argument("--html", type=Path, metavar="OUT", help="write a page with charts here")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as of the run")
    plan.set_defaults(run=_run_plan)


def _add_parity(commands: Any) -> None:
    parity = commands.add_parser(
        "parity", help="check that every parallel layout of a model computes the same function"
    )
    parity.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="Hugging Face files"
    )
    parity.add_argument(
        "--layouts",
        nargs="*",
        default=(),
        metavar="LAYOUT",
        help="such as tp2.sp.pp2.cp2, of tpN ppN vppN cpN epN dpN sp (default: all that make sense)",
    )
    parity.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    parity.add_argument("--steps", type=_positive, default=20, help="optimizer steps (%(default)s)")
    parity.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parity.add_argument("--max-ranks", type=_positive, default=8, help="of a layout (%(default)s)")
    parity.add_argument("--seed", type=int, default=0, help="of the batch")
    parity.add_argument(
        "--aux-loss", type=float, default=0.0, help="weight of the routers' load-balancing loss"
    )
    parity.add_argument("--z-loss", type=float, default=0.0, help="weight of the routers' z-loss")
    parity.add_argument(
        "--tolerance",
        type=_positive_number,
        default=1.0,
        help="times the thresholds of docs/parity.md (%(default)s); large models round more",
    )
    parity.add_argument(
        "--timeout", type=_positive_number, default=600.0, help="seconds for a layout (%(default)s)"
    )
    parity.set_defaults(run=_run_parity)


def _add_serve_rm(commands: Any) -> None:
    defaults = schema.RewardConfig()
    what = "serve a reward model, or a function, over HTTP (reward.urls)"
    serve = commands.add_parser("serve-rm", help=what, description=what)
    source = serve.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR", help="a reward model, on Megatron ranks")
    source.add_argument("--function", metavar="FILE", help="Python file that defines reward_func")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine only)"
    )
    serve.add_argument("--port", type=int, default=5000, help="0: any free one (%(default)s)")
    serve.add_argument(
        "--workers",
        type=_positive,
        default=defaults.workers,
        help="processes of a function (%(default)s)",
    )
    serve.add_argument(
        "--batch-size",
        type=_positive,
        default=defaults.batch_size,
        help="responses in one call (%(default)s)",
    )
    serve.add_argument(
        "--timeout",
        type=_positive_number,
        default=defaults.timeout_s,
        help="seconds for a call of a function (%(default)s)",
    )
    serve.add_argument(
        "--max-batch", type=_positive, default=1024, help="responses in a request (%(default)s)"
    )
    serve.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="a model's settings, as in rl: reward.parallel.tensor=2 cluster.reward_ranks=2",
    )
    serve.set_defaults(run=_run_serve_rm)


def _add_merge_lora(commands: Any) -> None:
    merge = commands.add_parser(
        "merge-lora", help="merge adapters into their base: a whole Hugging Face checkpoint"
    )
    for name, what in (
        ("base", "the model that they were trained for"),
        ("adapter", "adapters in PEFT's format"),
        ("output", "where to"),
    ):
        merge.add_argument(f"--{name}", required=True, type=Path, metavar="DIR", help=what)
    merge.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the tensors (default: the base's)"
    )
    merge.set_defaults(run=_run_merge_lora)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _positive_number(text: str) -> float:
    """Finite, too: nothing exceeds a tolerance that is NaN."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be greater than 0, and finite")
    return number


def _run_configured(arguments: argparse.Namespace) -> int:
    command: Command = arguments.command
    if arguments.help_config:
        for key, kind, default in describe(command.config):
            print(f"{key:40} {kind:28} {default}")
        return 0
    config = loader.load(command.config, arguments.config, arguments.overrides)
    module, function = command.runner.split(":")
    summary: dict[str, Any] = getattr(importlib.import_module(module), function)(config)
    if not summary.get("interrupted"):
        return 0
    return 0 if launcher.tell_stopped(summary["steps"]) else INTERRUPTED


def _run_demo(arguments: argparse.Namespace) -> int:
    from megarlhf.demo.run import run_demo

    return run_demo(arguments.dir, arguments.seed)


def _run_parity(arguments: argparse.Namespace) -> int:
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


def _run_plan(arguments: argparse.Namespace) -> int:
    from megarlhf.plan.tool import Settings, run_plan

    names = (field for field in Settings.__dataclass_fields__ if field not in _LISTS)
    lists = {name: tuple(getattr(arguments, name)) for name in _LISTS}
    return run_plan(Settings(**{name: getattr(arguments, name) for name in names}, **lists))


_LISTS = ("overrides", "calibrate")  # of `plan`


def _run_serve_rm(arguments: argparse.Namespace) -> int:
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
    own = [f"model.path={path}", f"reward.models=[{path}]"]
    config = loader.load(schema.RLConfig, None, [*arguments.overrides, *own])
    serve_model(config, arguments.host, arguments.port, arguments.max_batch)
    return 0


def _run_merge_lora(arguments: argparse.Namespace) -> int:
    import torch

    from megarlhf.models.lora.merging import merge

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    merge(arguments.base, arguments.adapter, arguments.output, dtype)
    print(f"wrote {arguments.output}")
    return 0


def _complain(error: UserError) -> None:
    if int(os.environ.get("RANK", "0")) == 0:  # under torchrun all ranks find the same
        print(f"megarlhf: error: {error}", file=sys.stderr)


def _user_error_behind(error: BaseException) -> UserError | None:
    """The `UserError` raised here, or in a remote process and wrapped in Ray's own error.

    Ray's wrapper is an instance of the wrapped class too, but its text is a traceback.
    """
    seen: BaseException | None = error
    while seen is not None:
        wrapped = getattr(seen, "cause", None)
        if isinstance(seen, UserError) and wrapped is None:
            return seen
        seen = wrapped or seen.__cause__
    reason = disk_error(error)
    return cannot_write(reason) if reason is not None else None
