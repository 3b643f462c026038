"""The command line: ``megarlhf COMMAND --config FILE key=value ...``."""

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megarlhf import __version__, launcher
from megarlhf.commands import demo, merge_lora, parity, plan, serve_rm
from megarlhf.config import loader, schema
from megarlhf.config.wording import describe
from megarlhf.errors import UserError, cannot_write, disk_error
from megarlhf.startup import importing


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
        "sample and score responses with the settings of rl; keep the best ones, and pairs",
    ),
    **{
        name: Command(
            config,
            "megarlhf.trainer.offline:train",
            f"{what}; run it under torchrun (launch/torchrun.sh)",
        )
        for name, config, what in (
            ("sft", schema.SFTConfig, "supervised fine-tuning"),
            ("rm", schema.RMConfig, "train a reward model on pairs of answers"),
            ("prm", schema.PRMConfig, "train a process reward model on labelled steps"),
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
        bare = [word.lstrip("-") for word in wrong if takes_settings and "=" in word]
        hint = f"; settings have no dashes: {' '.join(bare)}" if bare else ""
        parser.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megarlhf",
        description="RLHF on Megatron-Core, vLLM and Ray. For more: megarlhf COMMAND --help.",
    )
    parser.add_argument("--version", action="version", version=f"megarlhf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.add_argument("--config", metavar="FILE", help="YAML file of settings")
        sub.add_argument(
            "--help-config",
            action="store_true",
            help="list every setting: type, default and meaning",
        )
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="settings, e.g. optimizer.lr=1e-6"
        )
        sub.set_defaults(run=_run_configured, command=command)
    for module in (demo, parity, serve_rm, merge_lora):
        module.add(commands)
    plan.add(commands, [name for name in COMMANDS if name != "generate"])
    return parser


def _run_configured(arguments: argparse.Namespace) -> int:
    command: Command = arguments.command
    if arguments.help_config:
        for one in describe(command.config):
            meaning = f"  # {one.meaning}" if one.meaning else ""
            print(f"{one.key:40} {one.kind:28} {one.default}{meaning}")
        return 0
    config = _load(command, arguments.config, arguments.overrides)
    module, function = command.runner.split(":")
    with importing():
        run = getattr(importlib.import_module(module), function)
    summary: dict[str, Any] = run(config)
    if not summary.get("interrupted"):
        return 0
    return 0 if launcher.tell_stopped(summary["steps"]) else INTERRUPTED


def _load(command: Command, file: str | None, overrides: Sequence[str]) -> Any:
    """The configuration; where the file is one of other commands, the error names them."""
    try:
        return loader.load(command.config, file, overrides)
    except UserError as error:
        fits = {name: other for name, other in COMMANDS.items() if _is_file_of(other, file)}
        if fits and command not in fits.values():
            error.fix = f"use megarlhf {' or '.join(fits)}, which the file is for"
        raise


def _is_file_of(command: Command, file: str | None) -> bool:
    try:
        loader.load(command.config, file)
    except UserError:
        return False
    return file is not None


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
