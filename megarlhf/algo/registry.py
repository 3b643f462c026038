"""One row an algorithm: everything else asks the row, never the name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from megarlhf.algo.advantages import group_normalized
from megarlhf.errors import UserError


@dataclass(frozen=True)
class Algorithm:
    """An RL algorithm.

    Attributes:
        name: As in ``algorithm.name``.
        advantages: From rewards [G, n] to one advantage a sample [G, n].
        token_weight: Weight of each token of a response of length R in the loss. 1/R gives every
            response the same weight; 1 gives every token the same.
        min_samples: Samples a prompt it needs at least.
    """

    name: str
    advantages: Callable[[torch.Tensor], torch.Tensor]
    token_weight: Callable[[int], float]
    min_samples: int


ALGORITHMS = {
    row.name: row
    for row in (
        # Shao et al. 2024, arXiv:2402.03300
        Algorithm(
            "grpo", group_normalized, token_weight=lambda length: 1.0 / length, min_samples=2
        ),
    )
}


def find(name: str) -> Algorithm:
    """The row of an algorithm.

    Raises:
        UserError: No such algorithm; the nearest known is named.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(ALGORITHMS)}"
        raise UserError(f"there is no algorithm {name!r}", where="algorithm.name", fix=hint)
    return ALGORITHMS[name]
