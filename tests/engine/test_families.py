"""Every family against Hugging Face, in several layouts; the mixtures' auxiliary losses.

Tolerances: as in test_parity.py, of which this is the short form. The router's choice is discrete,
so a model whose two best experts were nearly equal could flip under rounding; these do not.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megarlhf.config.schema import ModelConfig, OptimizerConfig, ParallelConfig
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.export import export_huggingface
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.pool import RankFailure
from megarlhf.parallel.topology import Topology
from tests.engine import jobs
from tests.models.tiny import read_tensors
from tests.models.zoo import FAMILIES, MIXTURES, write_model

LENGTHS = (17, 5, 30, 9, 9, 23, 12, 40)
ONE = (1, {})
DENSE = {
    "tp1": ONE,
    "tp2.pp2.sp": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    "cp2.dp2": (4, {"context": 2}),
}
MIXTURE = {
    "tp1": ONE,
    "ep2": (2, {"expert": 2}),
    "ep4": (4, {"expert": 4}),
    "ep2.pp2": (4, {"expert": 2, "pipeline": 2}),
    "ep2.tp2.sp": (4, {"expert": 2, "tensor": 2, "sequence": True}),
    "cp2.ep2": (4, {"context": 2, "expert": 2}),
}
ALL = {**DENSE, **MIXTURE}
# What a family has beside the others needs few layouts: each says what could be wrong.
FEW = {
    "llama-yarn": ("cp2.dp2",),  # the context ranks' angles; the scale of the scores
    "qwen2-tied": ("tp2.pp2.sp",),  # the copy on the last stage
    "deepseek-v2": ("ep2.pp2", "ep2.tp2.sp"),  # latents are whole on every rank, heads are cut
    "deepseek-v3": ("ep2.tp2.sp", "cp2.ep2"),  # values are narrower than keys on the ring
    "qwen2-moe": ("ep2.tp2.sp", "cp2.ep2"),  # the shared expert and its gate are cut, or are not
    "qwen3-moe-mixed": ("ep2.pp2", "ep2.tp2.sp"),  # layers differ within and between stages
}
CASES = [
    (family, layout)
    for family in FAMILIES
    for layout in FEW.get(family, MIXTURE if family in MIXTURES else DENSE)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return {family: write_model(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def run_engine(rank, world, path, parallel, settings, sequences, steps, out):
    """This rank's log-probabilities and step metrics; the untrained model is exported too."""
    config = replace(settings, path=str(path), parallel=ParallelConfig(**parallel))
    topology = Topology.of(config.parallel, world)
    engine = ModelEngine(
        ModelSpec.read(path),
        config,
        topology,
        make_groups(topology, seed=1),
        rank,
        micro_batch_tokens=1024,
        optimizer=OptimizerConfig(lr=jobs.LR),
    )
    if out is not None:
        export_huggingface(engine.spec, topology, rank, engine.chunks, Path(out), torch.float32)
    return engine.logprobs(sequences), jobs.train(engine, sequences, steps)


def hugging_face_logprobs(path, sequences):
    from transformers import AutoModelForCausalLM

    # "eager": the grouped kernel that it would choose knows no fp64.
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, experts_implementation="eager", attn_implementation="eager"
    )
    found = {}
    for index, sequence in enumerate(sequences):
        ids = torch.tensor(sequence.token_ids)
        with torch.no_grad():
            log_p = model(ids[None]).logits[0, :-1].log_softmax(-1)
        found[index] = [0.0, *log_p.gather(1, ids[1:, None]).squeeze(1).tolist()]
    return found


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_family_computes_what_hugging_face_does(ranks, models, tmp_path, family, layout):
    world, parallel = ALL[layout]
    path, out = models[family], tmp_path / "export"
    sequences = jobs.make_sequences(101, LENGTHS)
    settings = ModelConfig(dtype="float32")
    outcome = ranks.run(world, run_engine, path, parallel, settings, sequences, 3, str(out))

    found = {index: values for part, _ in outcome for index, values in part.items()}
    for index, values in hugging_face_logprobs(path, sequences).items():
        assert found[index] == pytest.approx(values, abs=1e-5)
    expected = ranks.run(1, run_engine, path, {}, settings, sequences, 3, None)[0][1]
    for ours, theirs in zip(outcome[0][1], expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-6)

    source, exported = read_tensors(path), read_tensors(out)
    assert exported.keys() == source.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in source.items())


@pytest.mark.parametrize(
    ("family", "parallel"),
    [
        ("mixtral", {"tensor": 2, "sequence": True}),
        ("mixtral", {"context": 2}),
        ("qwen2-moe", {"context": 2, "tensor": 2, "sequence": True}),
        ("qwen3-moe-mixed", {"tensor": 2, "sequence": True, "pipeline": 2}),
    ],
    ids=["tp2.sp", "cp2", "cp2.tp2.sp", "tp2.sp.pp2"],
)
def test_auxiliary_losses_weigh_the_same_in_every_layout(ranks, models, family, parallel):
    """Odd lengths, so that sequence and context parallelism pad, and padding must not count.

    The whole batch is one micro-batch: the load-balancing loss is one of a micro-batch. Data
    parallelism cuts the batch into several, for which it is another function.
    """
    world = 1
    for size in (value for name, value in parallel.items() if name != "sequence"):
        world *= size
    settings = ModelConfig(dtype="float32", aux_loss_coef=0.1, z_loss_coef=0.01)
    sequences = jobs.make_sequences(101, LENGTHS)
    path = models[family]
    without = ranks.run(1, run_engine, path, {}, ModelConfig(dtype="float32"), sequences, 1, None)
    expected = ranks.run(1, run_engine, path, {}, settings, sequences, 3, None)[0][1]
    # The losses matter here: without them the first step's gradient is another.
    assert abs(expected[0]["grad_norm"] / without[0][1][0]["grad_norm"] - 1) > 1e-3
    ours = ranks.run(world, run_engine, path, parallel, settings, sequences, 3, None)[0][1]
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-6)


def train_and_leave(rank, world, path, parallel):
    engine = jobs.build(rank, world, path, parallel)
    sequences = jobs.make_sequences(engine.spec.vocab_size, LENGTHS)
    jobs.train(engine, sequences, 1)
    engine.logprobs(sequences)


def count_threads(rank, world):
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize(
    ("family", "parallel"), [("qwen2-moe", {"expert": 2}), ("qwen3-moe", {"expert": 2})]
)
def test_a_mixture_leaves_no_process_group_behind(ranks, models, family, parallel):
    """A rank of the pool lives on: every group that a model kept would leave it threads that spin."""
    before = ranks.run(2, count_threads)
    ranks.run(2, train_and_leave, models[family], parallel)
    after = ranks.run(2, count_threads)
    assert all(now <= then + 2 for now, then in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (1, {}),
        (2, {"overlap": True}),
        (4, {"expert": 2, "tensor": 2, "sequence": True}),
    ],
    ids=["one", "dp2.overlap", "ep2.tp2.sp"],
)
def test_grouped_experts_compute_what_single_ones_do(ranks, models, world, parallel):
    """Seen on a CPU: the same bits; a GPU's kernel may add in another order."""
    sequences = jobs.make_sequences(101, LENGTHS)
    (single, steps), (grouped, grouped_steps) = (
        ranks.run(
            world,
            run_engine,
            models["qwen3-moe"],
            parallel,
            ModelConfig(dtype="float32", experts=experts),
            sequences,
            3,
            None,
        )[0]
        for experts in ("sequential", "grouped")
    )
    for index, values in single.items():
        assert grouped[index] == pytest.approx(values, abs=1e-5)
    for ours, theirs in zip(grouped_steps, steps, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6)


def expert_classes(rank, world, path, experts):
    config = ModelConfig(path=str(path), dtype="float32", experts=experts)
    topology = Topology.of(config.parallel, world)
    groups = make_groups(topology, seed=1)
    engine = ModelEngine(
        ModelSpec.read(path), config, topology, groups, rank, micro_batch_tokens=64
    )
    return {type(layer.mlp.experts).__name__ for layer in engine.chunks[0].decoder.layers}


@pytest.mark.parametrize(
    ("experts", "expected"), [("grouped", "GroupedExperts"), ("sequential", "SequentialMLP")]
)
def test_experts_are_those_that_were_asked_for(ranks, models, experts, expected):
    assert ranks.run(1, expert_classes, models["qwen3-moe"], experts) == [{expected}]


def test_experts_that_cannot_be_grouped_are_refused(ranks, models):
    settings = ModelConfig(dtype="bfloat16", experts="grouped")
    parallel = {"tensor": 2, "sequence": True}
    with pytest.raises(RankFailure, match="multiple of 16 bytes") as refused:
        ranks.run(2, run_engine, models["qwen3-moe"], parallel, settings, [], 0, None)
    assert refused.value.__cause__.where == "model.experts"


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["qwen3-moe", "deepseek-v3", "gemma2"])
def test_gpu_computes_what_hugging_face_does(ranks, models, family):
    """Routers and experts one by one, latent attention, soft caps and windows."""
    sequences = jobs.make_sequences(101, LENGTHS)
    settings = ModelConfig(dtype="float32")
    ((found, _),) = ranks.run(1, run_engine, models[family], {}, settings, sequences, 1, None)
    for index, values in hugging_face_logprobs(models[family], sequences).items():
        assert found[index] == pytest.approx(values, abs=5e-5)


@pytest.mark.gpu
def test_gpu_groups_experts(ranks, models):
    """bf16's rounding apart: a digit or two of the gradient are alike."""
    sequences = jobs.make_sequences(101, LENGTHS)
    (single, steps), (grouped, grouped_steps) = (
        ranks.run(
            *(1, run_engine, models["qwen3-moe"], {}),
            *(ModelConfig(dtype="bfloat16", experts=experts), sequences, 2, None),
        )[0]
        for experts in ("sequential", "grouped")
    )
    for index, values in single.items():
        assert grouped[index] == pytest.approx(values, abs=5e-2)
    for ours, theirs in zip(grouped_steps, steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-2)
