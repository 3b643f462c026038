"""The transports of GPUs; on a machine without one they are skipped."""

from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.sync.cuda_ipc import CudaIpc
from megarlhf.sync.engine_layout import EngineTopology
from megarlhf.sync.link import Link
from megarlhf.sync.vllm_transport import PACKAGE, M2NSender
from tests.models.tiny import read_tensors
from tests.rollout.engine_process import GREEDY, EngineProcess, prompts_of, settings_of
from tests.rollout.models import write_engine_model
from tests.sync.test_stream import info_of

GPUS = torch.cuda.device_count()


def write(description, connection):
    memory = CudaIpc()
    for name, tensor in memory.attach(description).items():
        tensor.copy_(torch.arange(tensor.numel(), device="cuda").view(tensor.shape) + len(name))
    memory.settle()
    connection.send("written")
    connection.recv()  # the handles stay open until the values were read


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 1, reason="no CUDA device")
def test_another_process_writes_into_memory_that_is_opened_to_it():
    live = {
        "a": torch.zeros(3, 5, device="cuda"),
        "view": torch.zeros(100, dtype=torch.bfloat16, device="cuda")[20:60].view(4, 10),
    }
    memory = CudaIpc()
    shared, description = memory.publish(live)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=write, args=(description, theirs))
    process.start()
    assert ours.poll(100)
    ours.recv()
    for name, tensor in live.items():
        assert shared[name].data_ptr() == tensor.data_ptr()
        expected = torch.arange(tensor.numel()).view(tensor.shape) + len(name)
        assert torch.equal(tensor.cpu(), expected.to(tensor.dtype))
    ours.send("read")
    process.join(20)
    assert process.exitcode == 0


def send(info):
    torch.cuda.set_device(1)
    message = torch.arange(1000.0, device="cuda")
    Link(info, 1, torch.device("cuda", 1)).send(message, 0).wait()
    torch.cuda.synchronize()


@contextmanager
def link_to_sender(timeout_s):
    """A link on the first GPU to a process that `send`s from the second, and the process."""
    store = serve_store("127.0.0.1", timeout_s=60)
    info = info_of(port=store.port, transport="nccl", timeout_s=timeout_s)
    process = get_context("spawn").Process(target=send, args=(info,))
    process.start()
    try:
        yield Link(info, 0, torch.device("cuda", 0), store), process
    finally:
        process.kill()


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason="fewer than two CUDA devices")
def test_messages_over_nccl():
    with link_to_sender(timeout_s=60) as (link, process):
        message = torch.zeros(1000, device="cuda")
        link.receive(message, 1).wait()
        torch.cuda.synchronize()
        assert torch.equal(message.cpu(), torch.arange(1000.0))
        process.join(20)
        assert process.exitcode == 0


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason="fewer than two CUDA devices")
def test_an_engine_that_is_lost_costs_nccl_no_more_than_its_timeout():
    """Both sides meet, then one is gone: the other's wait raises, and its process computes on."""
    with link_to_sender(timeout_s=10) as (link, process):
        message = torch.zeros(1000, device="cuda")
        link.receive(message, 1).wait()
        process.join(20)
        with pytest.raises(RuntimeError):
            link.receive(message, 1).wait()
    assert (torch.ones(10, device="cuda") + 1).sum().item() == 20


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason="fewer than two CUDA devices")
def test_an_engine_takes_weights_by_vllm_s_own_engine(tmp_path):
    pytest.importorskip(PACKAGE)
    path = write_engine_model("llama", tmp_path)
    spec, topology = ModelSpec.read(path), Topology(world=1)
    store = serve_store("127.0.0.1", timeout_s=200)
    info = info_of(
        model_path=str(path),
        engine=asdict(EngineTopology()),
        port=store.port,
        transport="nccl_m2n",
    )
    truth = EngineProcess(settings_of(path, gpu_memory_utilization=0.2))
    expected = truth.call("generate", prompts_of([5, 6, 7]), GREEDY, [0])
    truth.close()
    tensors = read_tensors(path)
    save_file(
        {name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    engine = EngineProcess(settings_of(path, gpu_memory_utilization=0.2, transfer="nccl_m2n"))
    try:
        device = torch.device("cuda", 1)
        torch.cuda.set_device(device)
        held = {}
        for parameter in parameters_of(spec, topology, 0):
            live = torch.zeros(parameter.shape)
            for piece in parameter.pieces:
                live[piece.local.slices] = tensors[parameter.sources[piece.source]][piece.hf.slices]
            held[parameter.name] = live.to(device)
        chunk = SimpleNamespace(named_parameters=held.items)
        sender = M2NSender(spec, [chunk], 0)
        joining = engine.start("join_stream", info.as_dict())
        sender.connect(info, device, store)
        engine.wait(joining)
        receiving = engine.start("update_weights", 1)
        assert sender.send([0])[0].error is None
        engine.wait(receiving)
        found = engine.call("generate", prompts_of([5, 6, 7]), GREEDY, [0])
        assert found[0][0].response_ids == expected[0][0].response_ids
    finally:
        engine.close()
