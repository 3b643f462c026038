"""Adam's state on the host: the same training, bit for bit, and the same checkpoints."""

import functools
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from megarlhf.engine import checkpoint, host_adam, host_share
from megarlhf.engine.adam import GroupStepAdam
from megarlhf.engine.host_adam import HostAdam
from megarlhf.engine.optimizer import host_tensors
from megarlhf.errors import UserError
from tests.engine import jobs
from tests.engine.late_streams import late_streams
from tests.models.zoo import write_model

SEQUENCES = jobs.make_sequences(101, (17, 5, 30, 9, 9, 23, 12, 40))
ON_DEVICE = replace(jobs.OPTIMIZER, weight_decay=0.1)
ON_HOST = replace(ON_DEVICE, offload="states")
LAYOUTS = {
    "tp2": (2, {"tensor": 2}, "float32"),
    "pp2.vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}, "bfloat16"),
    "dp2, overlapped": (2, {"overlap": True}, "bfloat16"),
}


def three_steps(adam, name, device="cpu"):
    """Parameters, which take several loads and of which one has no gradient; and the optimizer."""
    generator = torch.Generator().manual_seed(0)
    sizes, settings = ((300, 7, 64), (5,)), {"lr": 1e-2, "weight_decay": 0.1}
    drawn = [[torch.randn(4, size, generator=generator) for size in group] for group in sizes]
    params = [[tensor[3].to(device, copy=True) for tensor in group] for group in drawn]
    before = params[0][1].clone()
    optimizer = adam([{"params": params[0]}, {"params": params[1], "lr": 0.1}], **settings)
    if adam is HostAdam:
        optimizer.begin(threads=torch.get_num_threads())
    for step in range(3):
        for group, own in zip(params, drawn, strict=True):
            for param, grads in zip(group, own, strict=True):
                setattr(param, name, grads[step].to(device, copy=True))
        setattr(params[0][1], name, None)
        optimizer.step()
    found = [param for group in params for param in group]
    assert torch.equal(found[1], before)
    return [param.cpu() for param in found], optimizer


def test_every_step_is_that_of_adam_on_the_device():
    """However late copies run."""
    expected, _ = three_steps(GroupStepAdam, "grad")
    with patch.object(host_adam, "LOAD", 64), late_streams():
        found, optimizer = three_steps(HostAdam, "decoupled_grad")
    assert all(map(torch.equal, found, expected))
    assert [group["step"] for group in optimizer.param_groups] == [3, 3]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    mains = [optimizer.get_unscaled_state(param, "master_param") for param in params]
    assert all(map(torch.equal, mains, found))


@pytest.mark.gpu
def test_a_gpu_s_streams_bring_the_same_bits():
    expected, _ = three_steps(GroupStepAdam, "grad")
    with patch.object(host_adam, "LOAD", 64):
        found, _ = three_steps(HostAdam, "decoupled_grad", "cuda")
    assert all(map(torch.equal, found, expected))
    on_device, _ = three_steps(GroupStepAdam, "grad", "cuda")
    for ours, theirs in zip(on_device, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def train_either_way(rank, world, path, parallel, dtype, directory):
    """By where the states are: three steps, the first one saved; and two from the other's checkpoint."""
    kinds = {"device": (ON_DEVICE, "host"), "host": (ON_HOST, "device")}
    straight, resumed, freed = {}, {}, {}

    def build(settings):
        return jobs.build(rank, world, path, parallel, dtype=dtype, optimizer=settings)

    def weights(engine):
        return [p.detach().clone() for chunk in engine.chunks for p in chunk.parameters()]

    groups_once = functools.cache(jobs.make_groups)
    with patch.object(host_adam, "LOAD", 1024), patch.object(jobs, "make_groups", groups_once):
        for kind, (settings, _) in kinds.items():
            engine = build(settings)
            metrics = jobs.train(engine, SEQUENCES, 1)
            saved = Path(directory) / kind
            saved.mkdir(exist_ok=True)
            checkpoint.save(engine, saved)
            freed[kind] = engine.offload("optimizer"), sum(map(len, host_tensors(engine.optimizer)))
            engine.reload()
            straight[kind] = metrics + jobs.train(engine, SEQUENCES, 2), weights(engine)
        for kind, (settings, other) in kinds.items():
            engine = build(settings)
            checkpoint.load(engine, Path(directory) / other)
            resumed[kind] = jobs.train(engine, SEQUENCES, 2), weights(engine)
    return straight, resumed, freed


def assert_the_same(ranks, path, layout, directory):
    world, parallel, dtype = layout
    for straight, resumed, freed in ranks.run(
        world, train_either_way, path, parallel, dtype, directory
    ):
        assert straight["host"][0] == straight["device"][0]
        assert straight["host"][0][0]["grad_norm"] > ON_HOST.clip_grad  # so that it was clipped
        for kind in ("host", "device"):
            assert resumed[kind][0] == straight["device"][0][1:]
        expected = straight["device"][1]
        for weights in (straight["host"][1], resumed["host"][1], resumed["device"][1]):
            assert all(map(torch.equal, weights, expected))
        assert freed["device"][0] > 0 == freed["device"][1]
        assert freed["host"][0] == 0 < freed["host"][1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_is_the_same_to_the_bit(ranks, llamas, layout, tmp_path):
    assert_the_same(ranks, llamas[True], LAYOUTS[layout], tmp_path)


def test_a_mixture_whose_experts_have_an_optimizer_of_their_own(ranks, tmp_path):
    path = write_model("mixtral", tmp_path / "hf")
    assert_the_same(ranks, path, (2, {"expert": 2}, "bfloat16"), tmp_path)


def refusal(rank, world, path):
    """The error where one machine's memory is too small for its ranks."""
    with patch.object(host_share, "free_memory", lambda: 2**20):
        try:
            jobs.build(rank, world, path, {}, optimizer=ON_HOST)
        except UserError as error:
            return str(error)
    return ""


def test_states_that_the_host_cannot_hold_are_refused_on_every_rank(ranks, llamas):
    for said in ranks.run(2, refusal, llamas[True]):
        assert said.startswith("optimizer.offload: the states of 2 ranks take 0.1 GiB of")
        assert "of which 0.0 are free" in said
