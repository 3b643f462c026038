"""The plan of a stream: pure shapes."""

import json
import time
from dataclasses import asdict

import pytest
import torch

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.plan import plan_stream
from tests.models.tiny import CONFIG

TOPOLOGIES = {
    "tp1": Topology(world=1),
    "tp2": Topology(world=2, tp=2),
    "dp4": Topology(world=4),
    "tp2.pp2": Topology(world=4, tp=2, pp=2),
    "tp2.pp2.vpp2.dp2": Topology(world=8, tp=2, pp=2, vpp=2),
}


def write_config(directory, **settings):
    config = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, **settings}
    (directory / "config.json").write_text(json.dumps(config))
    return ModelSpec.read(directory)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def spec(request, tmp_path):
    return write_config(tmp_path, **{**CONFIG, "tie_word_embeddings": request.param})


def elements_of(bucket):
    return sum(torch.Size(shape).numel() for _, shape in bucket.tensors)


@pytest.mark.parametrize("bucket_elements", [1, 5_000, 10**9])
@pytest.mark.parametrize("layout", TOPOLOGIES)
def test_messages_tile_every_tensor_once(spec, layout, bucket_elements):
    topology = TOPOLOGIES[layout]
    plan = plan_stream(spec, topology, bucket_elements)
    named = [(name, shape) for bucket in plan for name, shape in bucket.tensors]
    assert named == list(spec.tensors.items())
    for bucket in plan:
        covered = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in bucket.tensors}
        for rank, parts in bucket.parts.items():
            held = {
                (parameter.chunk, parameter.name, parameter.sources[piece.source], piece)
                for parameter in parameters_of(spec, topology, rank)
                for piece in parameter.pieces
            }
            for part in parts:
                assert part.rank == rank
                assert (part.chunk, part.parameter, part.name, part.piece) in held
                covered[part.name][part.piece.hf.slices] += 1
            assert bucket.elements_from(rank) == sum(part.piece.hf.numel for part in parts) > 0
        assert all((counts == 1).all() for counts in covered.values())
        assert sum(map(bucket.elements_from, bucket.parts)) == elements_of(bucket)


@pytest.mark.parametrize("bucket_elements", [1, 3_000, 5_000, 10**9])
def test_a_bucket_is_closed_as_soon_as_it_is_full(spec, bucket_elements):
    plan = plan_stream(spec, Topology(world=2, tp=2), bucket_elements)
    for bucket in plan[:-1]:
        assert elements_of(bucket) >= bucket_elements
    for bucket in plan:
        assert elements_of(bucket) - torch.Size(bucket.tensors[-1][1]).numel() < bucket_elements
    if bucket_elements == 10**9:
        assert len(plan) == 1


def test_both_ends_make_the_same_plan(spec):
    """The trainer has a topology; an engine gets it, with all else, as JSON."""
    topology = Topology(world=8, tp=2, pp=2, vpp=2, sequence_parallel=True)
    info = StreamInfo(
        model_path=str(spec.path),
        topology=asdict(topology),
        host="127.0.0.1",
        port=1,
        name="engine0",
        engine_ranks=1,
        bucket_elements=5_000,
        dtype="bfloat16",
        timeout_s=1.0,
    )
    received = StreamInfo(**json.loads(json.dumps(info.as_dict())))
    assert received.trainer == topology
    assert received.wire_dtype == torch.bfloat16
    theirs = plan_stream(
        ModelSpec.read(received.model_path), received.trainer, received.bucket_elements
    )
    assert theirs == plan_stream(spec, topology, 5_000)


@pytest.mark.parametrize(
    ("layers", "hidden", "ffn", "heads", "parameters"),
    [
        (32, 4096, 14336, 32, 8_030_261_248),
        (80, 8192, 28672, 64, 70_553_706_496),
    ],
    ids=["llama-3-8b", "llama-3-70b"],
)
def test_planning_large_models_takes_a_moment_and_no_weights(
    tmp_path, layers, hidden, ffn, heads, parameters
):
    spec = write_config(
        tmp_path,
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    start = time.process_time()
    plan = plan_stream(spec, Topology(world=32, tp=8, pp=4), 128 * 2**20)
    assert time.process_time() - start < 2  # seen: 0.1 s and 0.3 s
    assert sum(map(elements_of, plan)) == parameters
    shares = [sum(b.elements_from(rank) for b in plan if rank in b.parts) for rank in range(32)]
    assert sum(shares) == parameters
    assert max(shares) < 1.5 * parameters / 32  # the outer stages have the embeddings besides
