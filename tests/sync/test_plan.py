"""The plan of a stream, replayed on numbers that say where they come from."""

import json
import math
import time
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from benchmarks import shapes as published
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.models.weights.operations import Cut
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import (
    EngineTopology,
    engine_parameters,
    untouched_parameters,
)
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.plan import numel, plan_stream, workers_of
from megarlhf.sync.streamable import check_streamable
from tests.sync.shapes import KINDS, spec_of

SIZES = st.sampled_from([1, 2, 4])


def numbered(spec):
    """Every tensor of the checkpoint, every element of it another number."""
    tensors, first = {}, 1
    for name, shape in spec.tensors.items():
        count = math.prod(shape)
        tensors[name] = torch.arange(first, first + count, dtype=torch.int64).view(shape)
        first += count
    return tensors


def trainer_memory(spec, topology, tensors):
    """For each rank, what its parameters hold."""
    memory = []
    for rank in range(topology.world):
        held = {}
        for parameter in parameters_of(spec, topology, rank):
            values = torch.zeros(parameter.shape, dtype=torch.int64)
            for piece in parameter.pieces:
                tensor = tensors[parameter.sources[piece.source]]
                values[piece.local.slices] = tensor[piece.hf.slices]
            held[parameter.chunk, parameter.name] = values
        memory.append(held)
    return memory


def replay(plan, memory, engine, layouts):
    """What every worker has in the end, and how often each element was written."""
    values = {
        worker: {p.name: torch.zeros(p.shape, dtype=torch.int64) for p in layouts[worker[1]]}
        for worker in workers_of(engine)
    }
    counts = {
        worker: {n: torch.zeros_like(v) for n, v in v.items()} for worker, v in values.items()
    }
    for bucket in plan:
        for worker, messages in bucket.messages.items():
            for sender, moves in messages.items():
                for move in moves:
                    assert move.engine_parameter in bucket.names
                    sent = memory[sender][move.chunk, move.parameter][move.source.slices]
                    target = move.target.slices
                    values[worker][move.engine_parameter][target] = sent.view(move.target.shape)
                    counts[worker][move.engine_parameter][target] += 1
    return values, counts


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    tp=SIZES,
    pp=st.sampled_from([1, 2]),
    vpp=st.sampled_from([1, 2]),
    dp=st.sampled_from([1, 2, 3]),
    ep=st.sampled_from([1, 2]),
    engine_tp=SIZES,
    expert_parallel=st.booleans(),
    engines=st.sampled_from([1, 2]),
    bucket=st.sampled_from([1, 3_000, 10**9]),
)
def test_every_rank_of_every_engine_gets_exactly_what_it_keeps(
    tmp_path, kind, tp, pp, vpp, dp, ep, engine_tp, expert_parallel, engines, bucket
):
    spec = spec_of(kind, tmp_path)
    assume(pp > 1 or vpp == 1)
    assume(dp % ep == 0 and (spec.num_experts or ep == 1))
    topology = Topology(world=tp * pp * dp, tp=tp, pp=pp, vpp=vpp, ep=ep)
    engine = EngineTopology(engine_tp, expert_parallel and spec.num_experts > 0, engines)
    tensors = numbered(spec)
    layouts = [engine_parameters(spec, engine, rank) for rank in range(engine.tp)]
    plan = plan_stream(spec, topology, engine, bucket)
    values, counts = replay(plan, trainer_memory(spec, topology, tensors), engine, layouts)
    for worker in workers_of(engine):
        for parameter in layouts[worker[1]]:
            kept = torch.zeros(parameter.shape, dtype=torch.int64)
            expected = torch.zeros(parameter.shape, dtype=torch.int64)
            for piece in parameter.pieces:
                kept[piece.local.slices] += 1
                part = tensors[piece.tensor][piece.hf.slices]
                expected[piece.local.slices] = part.view(piece.local.shape)
            assert kept.max() == 1
            assert torch.equal(counts[worker][parameter.name], kept)
            assert torch.equal(values[worker][parameter.name], expected)
            assert parameter.kept == kept.sum()
    for bucket_planned in plan:
        sizes = [sum(map(numel, m.values())) for m in bucket_planned.messages.values()]
        modules = {name.rpartition(".")[0] for name in bucket_planned.names}
        assert max(sizes) <= bucket or len(modules) == 1
    # All ranks of an engine together keep the whole model, and each tensor where it is used.
    for tensor, whole in tensors.items():
        on_ranks = [
            part
            for layout in layouts
            for p in layout
            for piece in p.pieces
            if piece.tensor == tensor
            for part in whole[piece.hf.slices].flatten().tolist()
        ]
        kept = tensor in untouched_parameters(spec)  # the engine has loaded it for good
        assert set(on_ranks) == set(() if kept else whole.flatten().tolist())


def test_heads_are_whole_on_a_rank_or_copied(tmp_path):
    spec = spec_of("llama", tmp_path)  # 4 query heads, 2 key/value heads of 8
    for rank, heads in enumerate([0, 0, 1, 1]):
        parameters = engine_parameters(spec, EngineTopology(4), rank)
        qkv = next(p for p in parameters if p.name.endswith("0.self_attn.qkv_proj.weight"))
        rows = [piece.hf.ranges[0] for piece in qkv.pieces]
        assert rows == [(8 * rank, 8 * rank + 8), *[(8 * heads, 8 * heads + 8)] * 2]
        assert [piece.local.ranges[0] for piece in qkv.pieces] == [(0, 8), (8, 16), (16, 24)]


@pytest.mark.parametrize(
    ("kind", "engine", "key"),
    [
        ("llama", EngineTopology(3), "rollout.tensor_parallel"),
        ("mixtral", EngineTopology(8, expert_parallel=True), "rollout.tensor_parallel"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path, kind, engine, key):
    with pytest.raises(UserError) as caught:
        engine_parameters(spec_of(kind, tmp_path), engine, 0)
    assert caught.value.where == key


def test_a_router_that_vllm_would_take_for_another_is_refused(tmp_path):
    said = {"topk_method": "noaux_tc"}
    with pytest.raises(UserError, match="does not say scoring_func") as caught:
        check_streamable(spec_of("deepseek-v3", tmp_path, **said), EngineTopology())
    assert caught.value.fix == 'add "scoring_func": "sigmoid"'
    both = spec_of("deepseek-v3", tmp_path, **said, scoring_func="sigmoid")
    check_streamable(both, EngineTopology(2))


def test_an_unknown_operation_is_refused(tmp_path):
    class Unknown(Cut):
        pass

    spec = spec_of("llama", tmp_path)
    entry = replace(spec.entries[0], operation=lambda dims: Unknown(0))
    family = replace(spec.family, entries=(entry, *spec.family.entries[1:]))
    with pytest.raises(UserError, match=r"embed_tokens.*Unknown"):
        engine_parameters(replace(spec, family=family), EngineTopology(), 0)


def test_both_ends_make_the_same_plan(tmp_path):
    """The trainer has a topology; an engine gets it, with all else, as JSON."""
    spec = spec_of("qwen3-moe", tmp_path)
    topology = Topology(world=8, tp=2, pp=2, vpp=2, sequence_parallel=True)
    engine = EngineTopology(2, expert_parallel=True, engines=2)
    info = StreamInfo(
        model_path=str(spec.path),
        trainer=asdict(topology),
        engine=asdict(engine),
        number=1,
        host="127.0.0.1",
        port=1,
        name="engine1",
        transport="gloo",
        bucket_bytes=10_000,
        dtype="bfloat16",
        timeout_s=1.0,
    )
    received = StreamInfo(**json.loads(json.dumps(info.as_dict())))
    assert (received.trainer_topology, received.engine_topology) == (topology, engine)
    assert received.wire_dtype == torch.bfloat16
    theirs = received.plan(ModelSpec.read(received.model_path))
    assert theirs == plan_stream(spec, topology, engine, 5_000)


@pytest.mark.parametrize(
    ("size", "trainer", "engine", "seconds"),  # of planning: seen 0.2, 0.7, 10 s on a busy core
    [
        ("8B", Topology(world=8, tp=4), EngineTopology(2, engines=4), 2),
        ("70B", Topology(world=64, tp=8, pp=4), EngineTopology(8, engines=2), 4),
        ("235B-A22B", Topology(world=32, tp=4, ep=8), EngineTopology(8, True, 2), 30),
    ],
)
def test_large_models_are_planned_in_a_moment_with_even_senders(
    tmp_path, size, trainer, engine, seconds
):
    spec = published.spec_of(size, tmp_path)
    start = time.process_time()
    plan = plan_stream(spec, trainer, engine, 128 * 2**20)
    assert time.process_time() - start < seconds
    sent = [0] * trainer.world
    received = dict.fromkeys(workers_of(engine), 0)
    for bucket in plan:
        for worker, messages in bucket.messages.items():
            for sender, moves in messages.items():
                sent[sender] += numel(moves)
                received[worker] += numel(moves)
    for (_, rank), elements in received.items():
        assert elements == sum(p.kept for p in engine_parameters(spec, engine, rank))
    assert max(sent) < 1.1 * sum(sent) / trainer.world  # seen: 1.00, 1.03, 1.00
