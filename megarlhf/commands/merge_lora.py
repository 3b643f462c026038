"""``megarlhf merge-lora``."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Put it among the commands."""
    what = "merge adapters into their base: a whole Hugging Face checkpoint"
    merge = commands.add_parser("merge-lora", help=what, description=what)
    for name, what in (
        ("base", "the model that they were trained for"),
        ("adapter", "adapters in PEFT's format"),
        ("output", "where to"),
    ):
        merge.add_argument(f"--{name}", required=True, type=Path, metavar="DIR", help=what)
    merge.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the tensors (default: the base's)"
    )
    merge.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from megarlhf.models.lora.merging import merge

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    merge(arguments.base, arguments.adapter, arguments.output, dtype)
    print(f"wrote {arguments.output}")
    return 0
