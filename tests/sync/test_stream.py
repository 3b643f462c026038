"""Real trainer ranks stream to receivers, over every transport that a CPU has."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import load_file

from megarlhf.config.schema import ParallelConfig
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineTopology, engine_parameters
from megarlhf.sync.link import Link, StreamInfo
from megarlhf.sync.shared_memory import DIRECTORY, SharedMemory
from megarlhf.sync.transports import choose
from tests.engine.layouts import LAYOUTS
from tests.models.tiny import read_tensors, write_llama
from tests.sync import jobs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def receivers():
    """Processes: gloo ends one, without an exception, that gets a longer message than expected."""
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        yield pool


def info_of(**changed):
    info = StreamInfo(
        model_path="",
        trainer=asdict(Topology(world=1)),
        engine=asdict(EngineTopology()),
        number=0,
        host="127.0.0.1",
        port=0,
        name="engine0",
        transport="gloo",
        bucket_bytes=5_000,  # of 180,000: the plan has several buckets
        dtype="float32",
        timeout_s=200,  # the ranks may have to start first
    )
    return replace(info, **changed)


@pytest.mark.parametrize(
    ("layout", "tied", "dtype", "engines", "workers", "transport"),
    [
        ("tp1", False, "float32", 1, 1, "gloo"),
        ("tp2.dp2", True, "bfloat16", 2, 1, "shared_memory"),
        ("tp2.pp2.sp", True, "float32", 1, 2, "gloo"),
        ("pp2.vpp2", False, "bfloat16", 2, 2, "gloo"),
        ("pp2.vpp2", False, "float32", 1, 4, "staged_memory"),
    ],
)
def test_every_worker_of_every_engine_gets_the_bytes_it_keeps(
    ranks, receivers, tmp_path, layout, tied, dtype, engines, workers, transport
):
    source = write_llama(tmp_path / "source", tie_word_embeddings=tied)
    world, parallel = LAYOUTS[layout]
    store = serve_store("127.0.0.1", timeout_s=200)
    engine = EngineTopology(workers, engines=engines)
    infos = [
        info_of(
            model_path=str(source),
            trainer=asdict(Topology.of(ParallelConfig(**parallel), world)),
            engine=asdict(engine),
            number=number,
            port=store.port,
            name=f"engine{number}",
            transport=transport,
            dtype=dtype,
        )
        for number in range(engines)
    ]
    files = {tmp_path / f"{info.name}.{w}": (info, w) for info in infos for w in range(workers)}
    running = [receivers.submit(jobs.receive, *end, file) for file, end in files.items()]
    sent = ranks.run(world, jobs.stream_train_stream, source, parallel, infos, tmp_path / "trained")
    for receiver in running:
        receiver.result(timeout=60)

    spec, wire = ModelSpec.read(source), infos[0].wire_dtype
    for update, directory in enumerate((source, tmp_path / "trained")):
        truth = {name: tensor.to(wire) for name, tensor in read_tensors(directory).items()}
        kept = 0
        for file, (_, worker) in files.items():
            values = load_file(f"{file}.{update}")
            for parameter in engine_parameters(spec, engine, worker):
                kept += parameter.kept * wire.itemsize
                if transport == "staged_memory":
                    assert values[parameter.name].isfinite().all()  # padding is cleared
                for piece in parameter.pieces:
                    expected = truth[piece.tensor][piece.hf.slices]
                    got = values[parameter.name][piece.local.slices]
                    assert torch.equal(got, expected.view(got.shape)), parameter.name
        assert [e for on_rank in sent for one in on_rank[update].values() if (e := one.error)] == []
        assert kept == sum(one.nbytes for on_rank in sent for one in on_rank[update].values())
        if parallel.get("tensor", 1) < world:
            assert all(one.nbytes > 0 for on_rank in sent for one in on_rank[update].values())
    before, after = (
        read_tensors(directory)["model.norm.weight"] for directory in (source, tmp_path / "trained")
    )
    assert not torch.equal(before, after)
    assert len(infos[0].plan(spec)) > 3
    assert not list(DIRECTORY.glob("megarlhf-*"))  # unlinked while in use


def test_nccl_answers_in_time_and_leaves_the_process_alone(monkeypatch):
    """torch reads the variable where a group is made; the trainer's own groups keep their watchdog."""
    name, seen = "TORCH_NCCL_BLOCKING_WAIT", []
    monkeypatch.delenv(name, raising=False)

    def make(store, rank, size, timeout):
        seen.append((os.environ.get(name), rank, size, timeout.total_seconds()))

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", make, raising=False)
    store = serve_store("127.0.0.1", timeout_s=1)
    Link(info_of(port=store.port, timeout_s=7), 0, torch.device("cuda", 0), store)
    assert seen == [("1", 0, 2, 7.0)]
    assert name not in os.environ


def test_an_engine_that_does_not_come_is_an_error_in_time():
    store = serve_store("127.0.0.1", timeout_s=1)
    with pytest.raises(RuntimeError, match=r"(?i)timed? ?out"):
        Link(info_of(port=store.port, timeout_s=1), 0, CPU, store)


@pytest.mark.parametrize(
    ("device", "one_node", "colocated", "found"),
    [
        ("cpu", True, False, "shared_memory"),
        ("cpu", False, False, "gloo"),
        ("cuda", True, False, "nccl"),
        ("cuda", False, False, "nccl"),
        ("cuda", True, True, "cuda_ipc"),
        ("cuda", False, True, "gloo"),
    ],
)
def test_the_transport_follows_the_placement(device, one_node, colocated, found):
    place = {"device": device, "one_node": one_node, "colocated": colocated}
    assert choose("auto", **place) == found
    assert choose(found, **place) == found


@pytest.mark.parametrize(
    ("wanted", "device", "one_node", "colocated", "why"),
    [
        ("nccl", "cpu", True, False, "is for weights on cuda"),
        ("shared_memory", "cuda", True, False, "is for weights on cpu"),
        ("shared_memory", "cpu", False, False, "needs the engines on the machine"),
        ("nccl", "cuda", True, True, "share a GPU"),
        ("nccl_m2n", "cpu", True, False, "is for weights on cuda"),
        ("nccl_m2n", "cuda", False, True, "share a GPU"),
    ],
)
def test_a_transport_that_cannot_be_taken_is_refused(wanted, device, one_node, colocated, why):
    with pytest.raises(UserError, match=why) as caught:
        choose(wanted, device=device, one_node=one_node, colocated=colocated)
    assert caught.value.where == "stream.transport"


def test_no_room_in_shared_memory(monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no room"):
        SharedMemory().publish({"a": torch.zeros(10)})
    assert not list(DIRECTORY.glob("megarlhf-*"))
