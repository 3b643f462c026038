"""What a rank does for one layout: one measured training step, then further ones."""

import gc
from contextlib import nullcontext
from typing import Any

import torch
from safetensors.torch import save_file

from megarlhf.config.schema import ModelConfig
from megarlhf.engine.double import DoubleEngine
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parity import capture
from megarlhf.parity.losses import Recorded, loss_of
from megarlhf.parity.records import RankRun, Request


def run(rank: int, world: int, request: Request) -> RankRun:
    """Build the model and train it; collective over the layout's ranks."""
    with request.setup() if request.setup else nullcontext():
        found = _train(rank, request)
    gc.collect()  # Megatron's modules refer to each other; the process goes on to the next layout
    return found


def _train(rank: int, request: Request) -> RankRun:
    engine = _build(rank, request)
    loss = Recorded(loss_of(scalar=engine.spec.scalar_head is not None))
    gradients: dict[str, torch.Tensor] = {}
    finalize = engine.config.finalize_model_grads_func

    def finalize_and_keep(*args: Any, **kwargs: Any) -> None:
        finalize(*args, **kwargs)
        gradients.update(capture.gradients(engine.chunks, engine.wrapped))

    def step() -> dict[str, float]:
        return engine.train_step(request.batch.sequences, loss, lr=request.optimizer.lr)

    engine.config.finalize_model_grads_func = finalize_and_keep
    with capture.module_outputs(engine.chunks) as outputs:
        metrics = [step()]
    engine.config.finalize_model_grads_func = finalize
    save_file({**outputs, **gradients}, request.file_of(rank))
    packs = list(loss.packs)
    if request.dtype != "float64":
        metrics += [step() for _ in range(request.steps - 1)]
    return RankRun([each["loss"] for each in metrics], metrics[0]["grad_norm"], packs)


def _build(rank: int, request: Request) -> ModelEngine:
    layout = request.layout
    kind = DoubleEngine if request.dtype == "float64" else ModelEngine
    return kind(
        ModelSpec.read(request.model),
        ModelConfig(
            str(request.model),
            request.dtype,
            parallel=layout.parallel,
            aux_loss_coef=request.routing.balance,
            z_loss_coef=request.routing.z,
        ),
        layout.topology,
        make_groups(layout.topology, seed=1),
        rank,
        micro_batch_tokens=request.batch.micro_batch_tokens,
        optimizer=request.optimizer,
    )
