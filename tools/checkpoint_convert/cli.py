"""The command line of ``python -m tools.checkpoint_convert``."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch.distributed as dist

from megarlhf.errors import UserError
from megarlhf.parallel import interface
from tools.checkpoint_convert import dry_run
from tools.checkpoint_convert.checkpoints import HUGGING_FACE, MEGATRON, Checkpoint, open_checkpoint
from tools.checkpoint_convert.comparison import compare, nbytes_of
from tools.checkpoint_convert.conversion import Conversion, place, share
from tools.checkpoint_convert.description import describe, describe_plan
from tools.checkpoint_convert.layouts import topology_of
from tools.checkpoint_convert.progress import bar
from tools.checkpoint_convert.targets import Target, huggingface_target, megatron_target

DIFFERENT, USER_ERROR, INTERRUPTED = 1, 2, 130
LOGITS_TOLERANCE = 1e-5  # of the largest logit, in fp32


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 1 where `verify` finds a difference, 2 where the input is wrong, 130 where
        it was stopped.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # the libraries' notices; python -W shows them
    logging.basicConfig(format="%(levelname)s: %(message)s")
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:  # a file that may not be read, a place that is not to be written to
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("stopped; a conversion goes on from here with --resume", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checkpoint_convert",
        description="Convert, compare and look at checkpoints (docs/checkpoints.md).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    to_megatron = commands.add_parser("hf-to-megatron", help="Hugging Face's format to Megatron's")
    to_megatron.add_argument("--hf", type=Path, required=True, metavar="DIR", help="the model")
    for option, what in (
        ("--tp", "tensor"),
        ("--pp", "pipeline"),
        ("--vpp", "virtual pipeline"),
        ("--ep", "expert"),
    ):
        to_megatron.add_argument(
            option, type=int, default=1, metavar="N", help=f"{what} parallelism that writes it so"
        )
    _add_output(to_megatron)
    to_megatron.set_defaults(run=_to_megatron)

    to_hf = commands.add_parser("megatron-to-hf", help="Megatron's format to Hugging Face's")
    to_hf.add_argument("--megatron", type=Path, required=True, metavar="DIR", help="the checkpoint")
    to_hf.add_argument("--scalar-head", metavar="NAME", help="it is a reward model with this head")
    _add_config(to_hf)
    _add_output(to_hf)
    to_hf.set_defaults(run=_to_huggingface)

    verify = commands.add_parser("verify", help="compare two checkpoints of either kind")
    verify.add_argument("first", type=Path, metavar="A")
    verify.add_argument("second", type=Path, metavar="B")
    verify.add_argument("--logits", action="store_true", help="also compare what they compute")
    _add_config(verify)
    verify.set_defaults(run=_verify)

    inspect = commands.add_parser("inspect", help="what is in a checkpoint")
    inspect.add_argument("directory", type=Path, metavar="DIR")
    _add_config(inspect)
    inspect.set_defaults(run=_inspect)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf",
        type=Path,
        metavar="DIR",
        help="take config.json and tokenizer from here, for a Megatron checkpoint that has none",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="not there yet")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")


def _to_megatron(options: argparse.Namespace) -> int:
    sizes = {"tp": options.tp, "pp": options.pp, "vpp": options.vpp, "ep": options.ep}
    if options.dry_run:
        spec, dtypes = dry_run.shapes_of(options.hf)
        topology = topology_of(spec, **sizes)
        _print(describe_plan(megatron_target(spec, topology, dtypes), topology))
        return 0
    source = open_checkpoint(options.hf, kind=HUGGING_FACE)
    target = megatron_target(source.spec, topology_of(source.spec, **sizes), source.dtypes)
    return _convert(source, target, options)


def _to_huggingface(options: argparse.Namespace) -> int:
    source = open_checkpoint(
        options.megatron, kind=MEGATRON, config=options.hf, scalar_head=options.scalar_head
    )
    target = huggingface_target(source.spec, source.dtypes)
    if options.dry_run:
        _print(describe_plan(target, None))
        return 0
    return _convert(source, target, options)


def _convert(source: Checkpoint, target: Target, options: argparse.Namespace) -> int:
    under_torchrun = "RANK" in os.environ and not dist.is_initialized()
    if under_torchrun:
        interface.use_route_to(os.environ["MASTER_ADDR"])
        dist.init_process_group("gloo")
    rank, world = place()
    if rank == 0 and source.left_out:
        print(f"left out, as the model does not use them: {', '.join(source.left_out)}")
    mine = sum(target.tensors[name].nbytes for name in share(target.tensors, rank, world))
    with bar("converting", mine, shown=rank == 0) as progress:
        Conversion(source, target, options.out.absolute()).run(
            resume=options.resume, progress=progress
        )
    if rank == 0:
        print(f"{options.out}: {len(target.tensors):,} tensors, {target.nbytes:,} bytes")
    if under_torchrun:
        dist.destroy_process_group()
    return 0


def _verify(options: argparse.Namespace) -> int:
    configs = [d for d in (options.hf, options.first, options.second) if d and _has_config(d)]
    first, second = (
        open_checkpoint(d, config=None if _has_config(d) else next(iter(configs), None))
        for d in (options.first, options.second)
    )
    differences = 0
    with bar("comparing", nbytes_of(first), shown=True) as progress:
        for found in compare(first, second, progress):
            differences += 1
            print(f"{found.name}: {found.what}")
    print(f"{differences} of {len(first.spec.tensors):,} tensors differ")
    if not options.logits:
        return DIFFERENT if differences else 0
    from tools.checkpoint_convert.logits import largest_difference

    distance, largest = largest_difference(first, second)
    print(f"logits differ by at most {distance:.2g}; the largest is {largest:.3g}")
    return DIFFERENT if differences or not distance <= LOGITS_TOLERANCE * largest else 0


def _has_config(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def _inspect(options: argparse.Namespace) -> int:
    _print(describe(open_checkpoint(options.directory, config=options.hf)))
    return 0


def _print(lines: Iterable[tuple[str, str]]) -> None:
    for what, value in lines:
        print(f"{what:<13} {value}")
