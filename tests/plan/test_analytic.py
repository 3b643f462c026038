"""Large models' figures against sums made by hand, as Megatron's papers make them."""

import json
from pathlib import Path

import pytest

from megarlhf.plan.roles import TRAIN
from tests.plan import jobs

SHAPES = Path(__file__).parents[2] / "configs" / "models"
TOKENS = 4096
# Of each: the layout, its ranks, the stage.
CASES = {
    "meta-llama-3-70b-instruct": (
        {"tensor": 8, "sequence": True, "pipeline": 8, "context": 2},
        256,
        0,
    ),
    "qwen3-235b-a22b": ({"tensor": 4, "sequence": True, "expert": 8}, 32, 0),
}


@pytest.fixture(scope="module")
def planned(ranks):
    cases = [(SHAPES / name, *case) for name, case in CASES.items()]
    (found,) = ranks.run(1, jobs.stages, cases, TOKENS)
    return dict(zip(CASES, found, strict=True))


def shape(name):
    return json.loads((SHAPES / name / "config.json").read_text())


def test_70b(planned):
    run, config = planned["meta-llama-3-70b-instruct"], shape("meta-llama-3-70b-instruct")
    hidden, ffn, heads, dim = config["hidden_size"], config["intermediate_size"], 64, 128
    tp, cp, dp, layers = 8, 2, 2, 10
    matrices = hidden * ((heads + 2 * 8) * dim + heads * dim + 3 * ffn) // tp  # of a layer
    embedding = config["vocab_size"] * hidden // tp
    assert run.parameters == layers * (matrices + 2 * hidden) + embedding == 1_201_045_504

    micro_batches = run.micro_batches[TRAIN]
    usage = run.passes[TRAIN]
    tokens = TOKENS // cp * micro_batches
    pairs = TOKENS**2 // 2 // cp * micro_batches  # of a query and a key that it sees, on a rank
    attention = 14 * (heads // tp) * dim * pairs * layers  # 2 products, 5 backwards, 2 operations
    assert usage.attention_flops == attention
    assert usage.flops - attention == 6 * matrices * layers * tokens

    assert run.resting["weights"] == 2 * run.parameters + 4 * dim // 2  # and RoPE's frequencies
    assert run.resting["gradients"] == 4 * run.parameters
    shard = run.parameters // (dp * cp)
    assert run.resting["main parameters"] == pytest.approx(4 * shard, rel=1e-3)
    assert run.resting["optimizer"] == pytest.approx(8 * shard, rel=1e-3)

    # Under sequence parallelism a layer gathers twice and scatters twice, forwards and backwards, and
    # gathers once more for each of its column-parallel products' weight gradients.
    tensor_group = tuple(range(tp))
    each = TOKENS // cp * hidden * 2 * micro_batches  # bf16
    embedded = each  # scattered once forwards, gathered once backwards
    gathered = usage.traffic[tensor_group, "allgather"].nbytes
    scattered = usage.traffic[tensor_group, "reduce_scatter"].nbytes
    assert (gathered, scattered) == (6 * layers * each + embedded, 4 * layers * each + embedded)
    reduced = usage.traffic[tuple(range(0, 32, 8)), "reduce_scatter"].nbytes
    assert reduced == run.resting["gradients"]


def test_235b(planned):
    run, config = planned["qwen3-235b-a22b"], shape("qwen3-235b-a22b")
    hidden, ffn, experts, per_token = 4096, 1536, 128, 8
    heads, groups, dim = 64, 4, 128
    tp, ep, layers = 4, 8, 94
    attention = hidden * ((heads + 2 * groups) * dim + heads * dim) // tp
    router = experts * hidden
    expert = 3 * hidden * ffn // tp
    norms = 2 * hidden + 2 * dim
    embedding = config["vocab_size"] * hidden // tp
    layer = attention + router + norms + experts // ep * expert
    assert run.parameters == layers * layer + 2 * embedding + hidden  # one stage: head, final norm

    usage, micro_batches = run.passes[TRAIN], run.micro_batches[TRAIN]
    tokens = TOKENS * micro_batches
    routed = 6 * expert * per_token * tokens  # even routing: as many come as go
    routers = 6 * router * tokens // tp  # each rank routes its part of the sequence
    products = 6 * attention * tokens
    head = 6 * embedding * (tokens - micro_batches)  # the first token of a sequence is no target
    assert usage.flops - usage.attention_flops == layers * (products + routed + routers) + head
    sent = {kind: t.nbytes for (_, kind), t in usage.traffic.items() if kind == "alltoall"}
    # Tokens to their experts and back, forwards and backwards, and each one's routing weight.
    rows = tokens // tp * per_token
    assert sent["alltoall"] == pytest.approx(4 * layers * rows * hidden * 2, rel=2e-3)
