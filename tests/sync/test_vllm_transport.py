"""vLLM's own engine as a transport: who can take it, and what its two ends say to each other.

The ends themselves need GPUs: `test_gpu.py`.
"""

import contextlib
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from megarlhf.errors import UserError
from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.rollout.engine import VllmEngine
from megarlhf.sync import vllm_transport
from megarlhf.sync.engine_layout import EngineTopology
from megarlhf.sync.sender import Sent
from megarlhf.sync.vllm_transport import M2NSender, check_m2n
from tests.models.tiny import read_tensors, stand_ins, write_llama
from tests.sync.shapes import spec_of
from tests.sync.test_stream import CPU, info_of

TAKEN = {"adapters": False, "verify": "never"}


@pytest.mark.parametrize(
    ("installed", "settings", "layout", "says"),
    [
        (False, TAKEN, Topology(world=2), "needs the Python module nccl.m2n"),
        (True, {**TAKEN, "adapters": True}, Topology(world=2), "only adapters are trained"),
        (True, {**TAKEN, "verify": "first"}, Topology(world=2), "stream.verify"),
        (True, TAKEN, Topology(world=2, pp=2), "not stages"),
        (True, TAKEN, Topology(world=2, tp=2), "even cuts"),  # 101 tokens
    ],
)
def test_who_cannot_take_it_is_told_why(tmp_path, monkeypatch, installed, settings, layout, says):
    if installed:
        monkeypatch.setattr(vllm_transport, "PACKAGE", "torch")
    with pytest.raises(UserError, match=says):
        check_m2n(spec_of("llama", tmp_path), layout, **settings)


def test_who_can_take_it(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_transport, "PACKAGE", "torch")
    check_m2n(spec_of("llama", tmp_path, vocab_size=104), Topology(world=4, tp=2), **TAKEN)


class Llm:
    """Keeps what an engine is called with."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


class TrainerEnd:
    """In place of vLLM's: says what that says, and sends nothing."""

    def __init__(self, client, seconds):
        self._client, self._seconds = client, seconds

    def send_weights(self):
        self._client.start_weight_update()
        self._client.update_weights({"names": ["a"]})
        time.sleep(self._seconds)
        self._client.finish_weight_update()


def test_an_engine_reads_what_the_trainer_s_end_would_have_told_it(tmp_path, monkeypatch):
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    seen = {}

    def trainer_init(init_info, *, client, source):
        seen.update(info=init_info, source=source, end=TrainerEnd(client, 0))
        client.init_weight_transfer_engine({"world_size": init_info.world_size})
        return seen["end"]

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", trainer_init)
    path = write_llama(tmp_path)
    store = serve_store("127.0.0.1", timeout_s=10)
    topology = Topology(world=1)
    engine = EngineTopology(2, engines=1)
    info = info_of(
        model_path=str(path),
        engine=asdict(engine),
        port=store.port,
        transport="nccl_m2n",
        timeout_s=0.5,
    )
    spec = spec_of("llama", tmp_path)
    sender = M2NSender(spec, stand_ins(spec, topology, 0), 0)
    sender.connect(info, CPU, store)
    assert (seen["info"].world_size, seen["info"].destination_mesh_dims) == (3, (1, 2))
    assert seen["info"].master_port > 0

    sampler = object.__new__(VllmEngine)  # without a model
    sampler._llm, sampler._notes = Llm(), None
    sampler._settings = SimpleNamespace(transfer="nccl_m2n")
    sampler._generation = SimpleNamespace(paused=contextlib.nullcontext)
    sampler.join_stream(info.as_dict())
    nbytes = sum(tensor.nbytes for tensor in read_tensors(path).values())
    for version in (1, 2):
        assert sender.send([0]) == {0: Sent(nbytes)}
        sampler.update_weights(version)
    update = [
        ("start_weight_update", (), {}),
        ("update_weights", ({"update_info": {"names": ["a"]}},), {}),
    ]
    assert sampler._llm.calls == [
        ("init_weight_transfer_engine", ({"init_info": {"world_size": 3}},), {}),
        *update,
        ("finish_weight_update", (), {"weight_version": "1"}),
        *update,
        ("finish_weight_update", (), {"weight_version": "2"}),
    ]

    seen["end"]._seconds = 1
    with pytest.raises(UserError, match=r"engine 0 did not take an update within 0\.5 s"):
        sender.send([0])


def test_an_engine_that_is_gone_is_left_to_the_driver():
    def gone():
        raise RuntimeError("NCCL error:\n remote process exited")

    sender = M2NSender(None, [], 0)
    sender._device, sender._timeout_s, sender._nbytes = torch.device("cpu"), 5, 10
    sender._ends = {0: SimpleNamespace(send_weights=gone)}
    assert sender.send([0]) == {0: Sent(0, "NCCL error: remote process exited")}
