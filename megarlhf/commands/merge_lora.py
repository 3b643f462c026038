"""``megarlhf merge-lora``."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Put it among the commands."""
    what = "merge adapters into their base model, giving a whole Hugging Face checkpoint"
    merge = commands.add_parser("merge-lora", help=what, description=what)
    for name, what in (
        ("base", "the model that the adapters were trained on"),
        ("adapter", "the adapters, in PEFT's format"),
        ("output", "where to write the merged model"),
    ):
        merge.add_argument(f"--{name}", required=True, type=Path, metavar="DIR", help=what)
    merge.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of the merged model (default: the base's)",
    )
    merge.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from megarlhf.models.lora.merging import merge

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    merge(arguments.base, arguments.adapter, arguments.output, dtype)
    print(f"wrote {arguments.output}")
    return 0
