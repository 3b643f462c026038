"""Real trainer ranks stream to receivers over gloo."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import load_file

from megarlhf.config.schema import ParallelConfig
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.sync.link import Link, StreamInfo, serve_store
from megarlhf.sync.plan import plan_stream
from tests.engine.layouts import LAYOUTS
from tests.models.tiny import read_tensors, write_llama
from tests.sync import jobs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def receivers():
    """Processes: gloo ends one, without an exception, that gets a longer message than expected."""
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(
    ("layout", "tied", "dtype", "engines", "workers"),
    [
        ("tp1", False, "float32", 1, 1),
        ("tp2", False, "float32", 1, 1),
        ("tp2.dp2", True, "bfloat16", 2, 1),
        ("tp2.pp2.sp", True, "float32", 1, 2),
        ("pp2.vpp2", False, "bfloat16", 2, 2),
    ],
)
def test_every_worker_of_every_engine_gets_the_trainers_weights(
    ranks, receivers, tmp_path, layout, tied, dtype, engines, workers
):
    source = write_llama(tmp_path / "source", tie_word_embeddings=tied)
    world, parallel = LAYOUTS[layout]
    topology = Topology.of(ParallelConfig(**parallel), world)
    store = serve_store("127.0.0.1", timeout_s=200)
    first = StreamInfo(
        model_path=str(source),
        topology=asdict(topology),
        host="127.0.0.1",
        port=store.port,
        name="engine0",
        engine_ranks=workers,
        bucket_elements=5_000,  # of 45,000: the plan has several buckets
        dtype=dtype,
        timeout_s=200,  # the ranks may have to start first
    )
    infos = [replace(first, name=f"engine{engine}") for engine in range(engines)]
    received = {tmp_path / f"{info.name}.{w}": (info, w) for info in infos for w in range(workers)}
    running = [receivers.submit(jobs.receive, *end, file) for file, end in received.items()]
    arguments = source, parallel, infos, tmp_path / "trained"
    sent = ranks.run(world, jobs.stream_train_stream, *arguments)
    for receiver in running:
        receiver.result(timeout=60)

    dtype = first.wire_dtype
    truth = [
        {name: tensor.to(dtype) for name, tensor in read_tensors(directory).items()}
        for directory in (source, tmp_path / "trained")
    ]
    assert not torch.equal(truth[0]["model.norm.weight"], truth[1]["model.norm.weight"])
    for file in received:
        for update, expected in enumerate(truth):
            tensors = load_file(f"{file}.{update}")
            assert tensors.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(tensors[name], tensor), name
    one_copy = sum(tensor.nbytes for tensor in truth[0].values())
    assert len(plan_stream(ModelSpec.read(source), topology, 5_000)) > 3
    for update in range(jobs.UPDATES):
        assert sum(on_rank[update] for on_rank in sent) == one_copy * engines * workers
    if topology.dp > 1:
        assert all(on_rank[0] > 0 for on_rank in sent)


def test_an_engine_that_does_not_come_is_an_error_in_time():
    store = serve_store("127.0.0.1", timeout_s=1)
    info = StreamInfo(
        model_path="",
        topology=asdict(Topology(world=1)),
        host="127.0.0.1",
        port=store.port,
        name="engine0",
        engine_ranks=1,
        bucket_elements=1,
        dtype="float32",
        timeout_s=1,
    )
    with pytest.raises(RuntimeError, match=r"(?i)timed? ?out"):
        Link(info, 0, CPU, store)
