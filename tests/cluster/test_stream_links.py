"""What is said of a transport before a model is built."""

from dataclasses import replace

import pytest

from megarlhf.cluster.stream_links import check_transport
from megarlhf.config.schema import (
    ClusterConfig,
    LoraConfig,
    ModelConfig,
    ParallelConfig,
    RLConfig,
    StreamConfig,
)
from megarlhf.errors import UserError
from megarlhf.sync import vllm_transport
from tests.sync.shapes import spec_of

M2N = StreamConfig(transport="nccl_m2n", verify="never")


def config_of(stream, **changed):
    config = RLConfig(
        model=ModelConfig(path="", parallel=ParallelConfig(tensor=2)),
        stream=stream,
        cluster=ClusterConfig(actor_ranks=2),
    )
    return replace(config, **changed)


@pytest.mark.parametrize(
    ("stream", "on_gpu", "changed", "says"),
    [
        (StreamConfig(transport="nccl"), False, {}, "is for weights on cuda"),
        (M2N, False, {}, "is for weights on cuda"),
        (StreamConfig(transport="nccl_m2n"), True, {}, "stream.verify"),
        (M2N, True, {"lora": LoraConfig(rank=4)}, "only adapters are trained"),
    ],
)
def test_what_cannot_be_taken_is_refused(tmp_path, monkeypatch, stream, on_gpu, changed, says):
    monkeypatch.setattr(vllm_transport, "PACKAGE", "torch")
    spec = spec_of("llama", tmp_path, vocab_size=104)
    with pytest.raises(UserError, match=says):
        check_transport(config_of(stream, **changed), spec, on_gpu=on_gpu)


def test_what_can_be_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_transport, "PACKAGE", "torch")
    spec = spec_of("llama", tmp_path, vocab_size=104)
    check_transport(config_of(M2N), spec, on_gpu=True)
    check_transport(config_of(StreamConfig()), spec, on_gpu=False)
    check_transport(config_of(StreamConfig(transport="gloo")), spec, on_gpu=True)  # by the host
