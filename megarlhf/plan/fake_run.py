"""A role's own build and its steps on one fake rank, measured."""

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from megarlhf.data.packing import padded_length
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.fake_ranks import Received, fake_tensors, fake_world
from megarlhf.engine.finite_step import step_if_finite
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.optimizer import begin_state, host_tensors, state_tensors
from megarlhf.models.build import DTYPES
from megarlhf.plan.meter import Meter, Usage
from megarlhf.plan.roles import TRAIN, Role, Work

WEIGHTS, GRADIENTS = "weights", "gradients"
MAIN, OPTIMIZER, BUFFERS = "main parameters", "optimizer", "buffers"


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
    topology = role.topology
    with ExitStack() as stack:
        groups = stack.enter_context(fake_world(rank, topology))
        stack.enter_context(fake_tensors(_received(role, skew)))
        return measure(role, rank, groups, filled_for)


def measure(role: Role, rank: int, groups: Any, filled_for: int | None = None) -> RankRun:
    """Build and run on this rank, fake or real.

    Args:
        role: The model and its work.
        rank: This one.
        groups: Megatron's process groups.
        filled_for: The stage that gets as many micro-batches as it needs; None: this rank's. Real
            ranks need the same number.
    """
    columns = -(-role.spec.vocab_size // role.topology.tp)
    valid = min(columns, role.spec.vocab_size - columns * (role.topology.tp - 1))
    meter = Meter({columns, valid} if role.spec.scalar_head is None else ())
    with meter.measured():
        engine = ModelEngine(
            role.spec,
            _as_on_gpus(role),
            role.topology,
            groups,
            rank,
            micro_batch_tokens=role.micro_batch_tokens,
            optimizer=role.optimizer,
        )
        if engine.optimizer is not None:
            begin_state(engine.optimizer)
    host = _name_parts(meter, engine)
    run = RankRun(rank, dict(+meter.live), {}, {}, None, _count(engine), host)
    stage = engine.place.pp if filled_for is None else filled_for
    for phase, work in role.work.items():
        sequences, groups_of = batch_of(role, work, stage)
        shares = engine.passes.shares(sequences, groups_of)[engine.place.dp]
        run.micro_batches[phase] = len(shares)
        with meter.measured() as usage:
            if phase == TRAIN:
                engine.train_step(sequences, role.loss, lr=1e-6, groups=groups_of)
            else:
                engine.logprobs(sequences, groups=groups_of)
        run.passes[phase] = usage
    if engine.optimizer is not None:
        with meter.measured() as run.update:
            step_if_finite(engine.optimizer, 0.0, engine.device)
    return run


def batch_of(
    role: Role, work: Work, stage: int
) -> tuple[list[TokenSequence], list[tuple[int, ...]] | None]:
    """Enough of the work's sequences to fill the pipeline, and those that belong together."""
    topology = role.topology
    each = sequences_in_micro_batch(role, work)
    in_flight = 2 * topology.pp if topology.vpp > 1 else topology.pp - stage
    filling = in_flight + (topology.vpp == 1 < topology.pp)  # and one that follows
    wanted = min(micro_batches_of(role, work), filling)
    count = topology.dp * each * wanted
    trained = work.tokens // 2
    sequence = TokenSequence(
        [1] * work.tokens,
        [0.0] * (work.tokens - trained) + [1.0] * trained,
        {name: [0.5] * work.tokens for name in work.fields},
        dict.fromkeys(work.values, 1.0),
    )
    rows = range(0, count, work.in_a_row)
    together = [tuple(range(row, row + work.in_a_row)) for row in rows]
    return [sequence] * count, together if work.in_a_row > 1 else None


def sequences_in_micro_batch(role: Role, work: Work) -> int:
    """Of equally long ones, in whole rows."""
    row = work.in_a_row * padded_length(work.tokens, padding_of(role))
    return work.in_a_row * max(1, role.micro_batch_tokens // row)


def micro_batches_of(role: Role, work: Work) -> int:
    """Of a data-parallel rank, in the whole step."""
    share = -(-work.sequences // role.topology.dp)
    count = -(-share // sequences_in_micro_batch(role, work))
    stages = role.topology.pp if role.topology.vpp > 1 else 1
    return -(-count // stages) * stages


def padding_of(role: Role) -> int:
    """See `ModelEngine.pad_to_multiple`."""
    topology = role.topology
    multiple = topology.tp if topology.sequence_parallel else 1
    return multiple * (2 * topology.cp if topology.cp > 1 else 1)


def _received(role: Role, skew: float) -> Received:
    topology, settings = role.topology, role.spec.settings
    work = next(iter(role.work.values()))  # all work of a role is on sequences of one length
    tokens = sequences_in_micro_batch(role, work) * padded_length(work.tokens, padding_of(role))
    own = tokens // topology.cp
    passed = own // (topology.tp if topology.sequence_parallel else 1)
    return Received(
        (passed, 1, int(settings["hidden_size"])),
        own,
        int(settings.get("moe_router_topk") or 0),
        skew,
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


def _name_parts(meter: Meter, engine: ModelEngine) -> int:
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
    return host


def _storages(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor.untyped_storage().nbytes()]


def _count(engine: ModelEngine) -> int:
    return sum(p.numel() for chunk in engine.chunks for p in chunk.parameters())
