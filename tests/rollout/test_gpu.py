"""An engine on a GPU, asleep and awake, and weights that reach it; skipped without one."""

import pytest
import torch
from safetensors.torch import save_file

from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineTopology
from tests.models.tiny import read_tensors
from tests.rollout.engine_process import GREEDY, EngineProcess, Trainer, prompts_of, settings_of
from tests.rollout.models import write_engine_model

GPUS = torch.cuda.device_count()
PROMPTS = prompts_of([5, 6, 7], [1, 2, 3, 4, 5], [9, 8])
SEEDS = [0, 1, 2]
START_S = 600  # a GPU's engine compiles and records its steps


def answers(engine):
    found = engine.wait(engine.start("generate", PROMPTS, GREEDY, SEEDS), START_S)
    return [sample.response_ids for samples in found for sample in samples]


def started(path, **settings):
    engine = EngineProcess(
        settings_of(path, dtype="bfloat16", gpu_memory_utilization=0.3, **settings)
    )
    engine.wait(engine.start("ready"), START_S)
    return engine


def of_weights(path, **settings):
    """What an engine answers that has loaded a model."""
    engine = started(path, **settings)
    try:
        return answers(engine)
    finally:
        engine.close()


@pytest.fixture(params=["llama", "qwen3-moe", "deepseek-v3"])
def two_models(request, tmp_path):
    """A directory whose model is other than the tensors beside it; and the answers of these."""
    path = write_engine_model(request.param, tmp_path / "model")
    tensors = {name: tensor.bfloat16().float() for name, tensor in read_tensors(path).items()}
    expected = of_weights(path)
    others = {
        name: tensor if name.endswith("_bias") else tensor.flip(0).contiguous()  # not trained
        for name, tensor in tensors.items()
    }
    save_file(others, path / "model.safetensors", metadata={"format": "pt"})
    return path, tensors, expected


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True], ids=["eager", "graphs"])
def test_an_engine_that_slept_answers_with_what_the_trainer_wrote(two_models, cuda_graphs):
    """On one GPU, as `rollout.placement=colocated` has it, time and again."""
    path, tensors, expected = two_models
    engine = started(path, can_sleep=True, cuda_graphs=cuda_graphs)
    try:
        engine.call("sleep")
        trainer = Trainer(
            *(path, Topology(world=1), EngineTopology(), torch.device("cuda", 0)),
            transport="cuda_ipc",
            dtype="bfloat16",
        )
        trainer.connect(0, engine)
        for version in (1, 2):
            trainer.load({name: tensor * (version - 1) for name, tensor in tensors.items()})
            engine.call("wake", "weights")
            sent = trainer.update({0: engine}, version)
            assert [one.error for on_rank in sent for one in on_rank.values()] == [None]
            engine.call("wake", "kv_cache")
            found = answers(engine)
            assert trainer.verify({0: engine}) > 0
            if version == 1:
                assert found != expected  # of zeros
                engine.call("sleep")
        assert found == expected
    finally:
        engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 3, reason="fewer than three CUDA devices")
def test_two_gpus_of_an_engine_that_sleeps_get_their_parts(tmp_path):
    """Two ranks within one process of ours; the trainer has a third GPU, and NCCL."""
    path = write_engine_model("llama", tmp_path)
    tensors = {name: tensor.bfloat16().float() for name, tensor in read_tensors(path).items()}
    expected = of_weights(path, tensor_parallel=2)
    engine = started(path, tensor_parallel=2, can_sleep=True)
    try:
        device = torch.device("cuda", 2)
        torch.cuda.set_device(device)
        layout = Topology(world=1), EngineTopology(2), device
        trainer = Trainer(path, *layout, transport="nccl", dtype="bfloat16")
        trainer.load(tensors)
        trainer.connect(0, engine)
        engine.call("sleep")
        engine.call("wake", "weights")
        trainer.update({0: engine}, 1)
        engine.call("wake", "kv_cache")
        assert answers(engine) == expected
    finally:
        engine.close()
