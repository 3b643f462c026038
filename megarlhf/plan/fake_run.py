"""A role's own build and its steps on one fake rank, measured."""

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from megarlhf.engine.averaged_weights import AveragedWeights
from megarlhf.engine.before_training import BeforeTraining
from megarlhf.engine.fake_ranks import Received, fake_tensors, fake_world
from megarlhf.engine.finite_step import step_if_finite
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.optimizer import begin_state, host_tensors, state_tensors
from megarlhf.models.build import DTYPES
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.plan.batches import batch_of, dealt
from megarlhf.plan.lessons import taught, teach
from megarlhf.plan.meter import STEP, Meter
from megarlhf.plan.roles import TRAIN, Role
from megarlhf.plan.usage import Usage

WEIGHTS, GRADIENTS = "weights", "gradients"
MAIN, OPTIMIZER, BUFFERS = "main parameters", "optimizer", "buffers"
AVERAGE = "average weights"


@dataclass
class RankRun:
    """What a rank of a role was measured to need.

    Attributes:
        rank: Its number.
        resting: Bytes by kind while it does nothing.
        passes: By phase, of ``micro_batches`` micro-batches.
        micro_batches: By phase, how many the run had.
        update: The optimizer's step alone; None for a model that is not trained.
        parameters: Elements that this rank holds.
        host: Bytes of the optimizer's that it keeps in the host's memory.
    """

    rank: int
    resting: dict[str, int]
    passes: dict[str, Usage]
    micro_batches: dict[str, int]
    update: Usage | None
    parameters: int
    host: int


def run_rank(role: Role, rank: int, *, skew: float = 1.0, filled_for: int | None = None) -> RankRun:
    """Build the role's model as a rank would, and let it do its work once.

    With as many micro-batches as it takes until no more are in flight at a time.

    Args:
        role: The model and its work.
        rank: Which rank to be.
        skew: See `Received`.
        filled_for: See `measure`.
    """
    topology, received = role.topology, _received(role, skew)
    with ExitStack() as stack:
        stack.enter_context(_older_left_alone())
        groups = stack.enter_context(fake_world(rank, topology))
        stack.enter_context(fake_tensors(received))
        return measure(role, rank, groups, filled_for, received)


@contextmanager
def _older_left_alone() -> Iterator[None]:
    """What is there already is not looked at when garbage is collected: that takes longer than a run."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure(
    role: Role,
    rank: int,
    groups: Any,
    filled_for: int | None = None,
    received: Received | None = None,
) -> RankRun:
    """Build and run on this rank, fake or real.

    Args:
        role: The model and its work.
        rank: This one.
        groups: Megatron's process groups.
        filled_for: The stage that gets as many micro-batches as it needs; None: this rank's. Real
            ranks need the same number.
        received: What a fake rank is told.
    """
    meter = Meter(_logit_columns(role))
    with meter.measured():
        engine = ModelEngine(
            role.spec,
            _as_on_gpus(role),
            role.topology,
            groups,
            rank,
            micro_batch_tokens=role.micro_batch_tokens,
            optimizer=role.optimizer,
            share=role.share,
            adapters=adapters_of(role.lora, role.spec, role.topology, seed=0),
        )
        if engine.optimizer is not None:
            begin_state(engine.optimizer)
            engine._step = _apart(meter, engine._step)
        average = None if role.averaging is None else AveragedWeights(engine, role.averaging)
    host = _name_parts(meter, engine, average)
    run = RankRun(rank, dict(+meter.live), {}, {}, None, _count(engine), host)
    stage = engine.place.pp if filled_for is None else filled_for
    for phase in role.work:
        if received is not None:
            received.tokens = dealt(role, phase).full_tokens // role.topology.cp
        sequences, packs = batch_of(role, phase, stage)
        run.micro_batches[phase] = len(packs) // role.topology.dp
        loss = taught(role, engine, meter, sequences, packs) if phase == TRAIN else None
        with meter.measured() as run.passes[phase]:
            if loss is not None:
                engine.train_step(sequences, loss, lr=1e-6, groups=packs)
                _average(average)
            elif role.student is not None:
                run.micro_batches[phase] = teach(role, engine)
            else:
                runner = BeforeTraining(engine) if role.is_borrowed else engine
                runner.logprobs(sequences, groups=packs)
        del loss  # and what its lesson keeps
    if engine.optimizer is not None:
        with meter.measured() as run.update:
            step_if_finite(engine.optimizer, 0.0, engine.device)
            _average(average)
    return _without_model(run) if role.is_borrowed else run


def _apart(meter: Meter, step: Callable[..., Any]) -> Callable[..., Any]:
    def taken(*args: Any) -> Any:
        with meter.part(STEP):
            return step(*args)

    return taken


def _average(average: AveragedWeights | None) -> None:
    if average is not None:
        average.update()


def _without_model(run: RankRun) -> RankRun:
    """What a pass needs beside a model that is another role's."""
    for usage in run.passes.values():
        usage.peaks = {
            part: dict(Counter(peak) - Counter(run.resting)) for part, peak in usage.peaks.items()
        }
    return replace(run, resting={})


def _logit_columns(role: Role) -> set[int]:
    if role.spec.scalar_head is not None:
        return set()
    columns = -(-role.spec.vocab_size // role.topology.tp)
    return {columns, min(columns, role.spec.vocab_size - columns * (role.topology.tp - 1))}


def _received(role: Role, skew: float) -> Received:
    topology, settings = role.topology, role.spec.settings
    return Received(
        hidden=int(settings["hidden_size"]),
        cut=topology.tp if topology.sequence_parallel else 1,
        experts_per_token=int(settings.get("moe_router_topk") or 0),
        skew=skew,
    )


def _as_on_gpus(role: Role) -> Any:
    """The settings with what a GPU would choose."""
    config, spec = role.config, role.spec
    if not spec.num_experts or config.experts != "auto":
        return config
    from megarlhf.models.grouped_experts import can_group

    widths = int(spec.settings["hidden_size"]), spec.dims["expert_ffn"] // role.topology.tp
    grouped = config.dtype == "bfloat16" and can_group(DTYPES[config.dtype], *widths)
    return replace(config, experts="grouped" if grouped else "sequential")


def _name_parts(meter: Meter, engine: ModelEngine, average: AveragedWeights | None) -> int:
    """Tell the meter what lies in the GPU's memory for good; returns the bytes in the host's."""
    gc.collect()
    host = 0 if engine.optimizer is None else meter.leave_out(host_tensors(engine.optimizer))
    meter.name_all(BUFFERS)
    meter.name(WEIGHTS, _storages(engine._tensors_of("weights")))
    meter.name(GRADIENTS, _storages(engine._tensors_of("gradients")))
    if engine.optimizer is not None:
        mains = [
            parameter
            for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])
            for group in part.shard_fp32_from_float16_groups
            for parameter in group
            if parameter is not None
        ]
        meter.name(OPTIMIZER, _storages(state_tensors(engine.optimizer)))
        meter.name(MAIN, _storages(mains))
    if average is not None:
        meter.name(AVERAGE, average.tensors)
    return host


def _storages(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor.untyped_storage().nbytes()]


def _count(engine: ModelEngine) -> int:
    return sum(p.numel() for chunk in engine.chunks for p in chunk.parameters())
