"""What a rank does for one layout: one measured training step, then further ones."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import ModelConfig, OptimizerConfig
from megarlhf.data.records import MicroBatch
from megarlhf.engine.double import DoubleEngine
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parity import capture
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
        optimizer: Its settings.
        directory: Where the ranks write their outputs and gradients.
        setup: Entered before the model is built and left at the end; for tests, to plant faults.
    """

    model: Path
    layout: Layout
    dtype: str
    batch: Batch
    steps: int
    optimizer: OptimizerConfig
    directory: Path
    setup: Setup | None = None


@dataclass(frozen=True)
class Pack:
    """Which sequences a micro-batch holds, and this rank's length of each."""

    order: tuple[int, ...]
    lengths: tuple[int, ...]


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


def file_of(directory: Path, rank: int) -> Path:
    """Where a rank's outputs and gradients are."""
    return directory / f"rank{rank}.safetensors"


@dataclass
class _Recorded(NegativeLogLikelihood):
    """The loss, which remembers the micro-batches that it was called for."""

    packs: list[Pack] = field(default_factory=list)

    def __call__(
        self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.packs.append(Pack(batch.order, batch.lengths))
        return super().__call__(logprobs, entropy, batch)


def run(rank: int, world: int, request: Request) -> RankRun:
    """Build the model and train it; collective over the layout's ranks."""
    with request.setup() if request.setup else nullcontext():
        engine = _build(rank, request)
        loss, tensors = _Recorded(), {}
        finalize = engine.config.finalize_model_grads_func

        def finalize_and_keep(*args: Any, **kwargs: Any) -> None:
            finalize(*args, **kwargs)
            tensors.update(capture.gradients(engine.chunks, engine.wrapped))

        def step() -> dict[str, float]:
            return engine.train_step(request.batch.sequences, loss, lr=request.optimizer.lr)

        engine.config.finalize_model_grads_func = finalize_and_keep
        with capture.module_outputs(engine.chunks) as outputs:
            metrics = [step()]
        engine.config.finalize_model_grads_func = finalize
        save_file({**outputs, **tensors}, file_of(request.directory, rank))
        packs = list(loss.packs)
        if request.dtype != "float64":
            metrics += [step() for _ in range(request.steps - 1)]
    del engine
    gc.collect()  # Megatron's modules refer to each other; the process goes on to the next layout
    return RankRun([each["loss"] for each in metrics], metrics[0]["grad_norm"], packs)


def _build(rank: int, request: Request) -> ModelEngine:
    layout = request.layout
    kind = DoubleEngine if request.dtype == "float64" else ModelEngine
    return kind(
        ModelSpec.read(request.model),
        ModelConfig(str(request.model), request.dtype, parallel=layout.parallel),
        layout.topology,
        make_groups(layout.topology, seed=1),
        rank,
        micro_batch_tokens=request.batch.micro_batch_tokens,
        optimizer=request.optimizer,
    )
