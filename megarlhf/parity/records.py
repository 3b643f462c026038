"""What travels between the tool and its ranks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarlhf.config.schema import OptimizerConfig
from megarlhf.parity.auxiliary import RoutingLosses
from megarlhf.parity.batch import Batch
from megarlhf.parity.layouts import Layout

Setup = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Request:
    """One layout to run.

    Attributes:
        model: The Hugging Face directory.
        layout: The layout.
        dtype: ``float32``, ``bfloat16`` or ``float64``.
        batch: What to run.
        steps: Optimizer steps, the measured one included (float64: only that one is made).
        routing: Weights of a mixture's auxiliary losses.
        optimizer: Its settings.
        directory: Where each rank writes its outputs and gradients.
        setup: Entered before the model is built and left at the end; for tests, to plant faults.
    """

    model: Path
    layout: Layout
    dtype: str
    batch: Batch
    steps: int
    routing: RoutingLosses
    optimizer: OptimizerConfig
    directory: Path
    setup: Setup | None = None

    def file_of(self, rank: int) -> Path:
        """A rank's file."""
        return self.directory / f"rank{rank}.safetensors"


@dataclass(frozen=True)
class Pack:
    """What a rank ran as one micro-batch.

    Attributes:
        order: The sequences in it, by their number in the batch.
        lengths: Tokens that this context-parallel rank has of each, padding included.
        position_ids: Of its tokens: where in their sequences they are.
    """

    order: tuple[int, ...]
    lengths: tuple[int, ...]
    position_ids: list[int]


@dataclass(frozen=True)
class RankRun:
    """What a rank reports besides its file.

    Attributes:
        losses: Of every step.
        grad_norm: Of the first step, before clipping; NaN in float64.
        packs: Its micro-batches; only on the last pipeline stage.
    """

    losses: list[float]
    grad_norm: float
    packs: list[Pack]
