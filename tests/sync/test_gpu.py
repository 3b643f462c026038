"""The transports of GPUs; on a machine without one they are skipped."""

from multiprocessing import get_context

import pytest
import torch

from megarlhf.sync.cuda_ipc import CudaIpc
from megarlhf.sync.link import Link, serve_store
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
def test_another_process_writes_live_parameters():
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


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason="fewer than two CUDA devices")
def test_messages_over_nccl():
    store = serve_store("127.0.0.1", timeout_s=60)
    info = info_of(port=store.port, transport="nccl", timeout_s=60)
    process = get_context("spawn").Process(target=send, args=(info,))
    process.start()
    message = torch.zeros(1000, device="cuda")
    Link(info, 0, torch.device("cuda", 0), store).receive(message, 1).wait()
    torch.cuda.synchronize()
    assert torch.equal(message.cpu(), torch.arange(1000.0))
    process.join(20)
    assert process.exitcode == 0
