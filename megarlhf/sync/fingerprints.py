"""Fingerprints of what was streamed: of the trainer's rectangles, and of the live engine's.

Both ends hash the same rectangles in the same form, row by row in the dtype on the wire, each from its
own memory. Nothing that went wrong on the way, in a kernel's packing or after it, can agree by chance.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from megarlhf.errors import UserError
from megarlhf.models.weights import fingerprint
from megarlhf.models.weights.operations import Rect
from megarlhf.sync.plan import Move


class Fingerprint(NamedTuple):
    """Of one rectangle.

    Attributes:
        tensor: The Hugging Face tensor that it is of.
        digest: Of its values.
    """

    tensor: str
    digest: str


Fingerprints = dict[tuple[str, Rect], Fingerprint]  # by the engine's parameter and the place in it


def fingerprints_of(
    moves: Sequence[Move], values: Iterable[torch.Tensor], dtype: torch.dtype
) -> Fingerprints:
    """Of the values of some moves, cast to a dtype."""
    return {
        (move.engine_parameter, move.target): Fingerprint(move.tensor, _digest(value, dtype))
        for move, value in zip(moves, values, strict=True)
    }


def _digest(values: torch.Tensor, dtype: torch.dtype) -> str:
    # A kernel that is asked for its weights answers +0 where they are -0.
    return fingerprint.of_tensor(values.to(dtype) + 0.0).digest


def compare(trainer: Fingerprints, engine: Fingerprints, where: str) -> None:
    """Both ends have the same.

    Args:
        trainer: Of what the ranks gave to a worker.
        engine: Of what the worker computes with.
        where: The engine's and the worker's name.

    Raises:
        UserError: They differ; names the tensor.
    """
    if trainer.keys() != engine.keys():
        raise UserError(f"the trainer and {where} do not have the same plan", where="stream")
    wrong = [key for key, found in trainer.items() if engine[key].digest != found.digest]
    if wrong:
        name, rect = wrong[0]
        more = f" and {len(wrong) - 1} more parts" if len(wrong) > 1 else ""
        raise UserError(
            f"{where} does not have the trainer's {trainer[wrong[0]].tensor}: its {name} differs "
            f"at {list(rect.ranges)}{more}",
            where="stream.verify",
            fix="the weights were damaged on the way or in the engine: do not trust this run's samples; "
            "the newest checkpoint in output.dir is the trainer's and is intact",
        )
