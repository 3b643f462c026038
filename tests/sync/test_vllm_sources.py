"""What vLLM's own weight-transfer engines are given, held against the checkpoint it came from."""

import pytest
import torch

from megarlhf.errors import UserError
from tests.engine import jobs
from tests.models.tiny import read_tensors, write_llama
from tests.models.zoo import write_model

WHOLE = {  # family, ranks, layout
    "tied-tp2.pp2": ("qwen2-tied", 4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    "mixture-tp2.ep2": ("qwen3-moe", 4, {"tensor": 2, "expert": 2, "sequence": True}),
}


def whole_tensors(rank, world, path, parallel):
    """Names, held ones and tensors of the source, as two rounds give them."""
    from megarlhf.sync.vllm_sources import WholeTensors

    engine = jobs.build(rank, world, path, parallel)
    source = WholeTensors(
        engine.spec, engine.topology, rank, engine.chunks, engine.groups.tp, torch.float32
    )
    list(source)
    described = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    groups = [list(names) for names, _ in source.iter_groups()]  # vLLM checks the order
    return described, groups, source.held_names(), dict(source)


@pytest.mark.parametrize("case", WHOLE)
def test_whole_tensors_are_those_of_the_checkpoint(ranks, tmp_path, case):
    family, world, parallel = WHOLE[case]
    path = write_model(family, tmp_path)
    expected = read_tensors(path)
    found = ranks.run(world, whole_tensors, path, parallel)
    for described, groups, held, tensors in found:
        assert described == found[0][0]  # of the whole model, on every rank
        assert {name for name, _, _ in described} == set(expected)
        assert [name for names in groups for name in names] == list(tensors)
        for name, tensor in tensors.items():
            assert (tensor is not None) == (name in held)
            assert tensor is None or torch.equal(tensor, expected[name])
    assert set().union(*(held for _, _, held, _ in found)) == set(expected)
    assert all(held != set(expected) for _, _, held, _ in found)


def local_shards(rank, world, path, parallel):
    """The mesh, and every tensor's placement and shard; or what is wrong with the layout."""
    from megarlhf.sync.vllm_sources import LocalShards

    engine = jobs.build(rank, world, path, parallel)
    try:
        source = LocalShards(engine.spec, engine.topology, rank, engine.chunks, torch.float32)
    except UserError as error:
        return str(error)
    metas = {meta.name: (meta.shape, meta.placements) for meta in source.metadata()}
    assert list(metas) == [name for name, _ in source]
    return source.mesh().dims, {name: (*metas[name], shard) for name, shard in source}


def test_local_shards_are_slices_of_the_checkpoint(ranks, tmp_path):
    path = write_llama(tmp_path, vocab_size=104)
    expected = read_tensors(path)
    dims = set()
    for rank, (mesh, shards) in enumerate(ranks.run(4, local_shards, path, {"tensor": 2})):
        assert mesh == (2, 2)
        assert set(shards) == set(expected)
        for name, (shape, placements, shard) in shards.items():
            assert shape == tuple(expected[name].shape)
            dim = None if placements is None else placements[1]
            dims.add(dim)
            whole = expected[name]
            assert torch.equal(shard, whole if dim is None else whole.chunk(2, dim)[rank % 2])
    assert dims == {None, 0, 1}


@pytest.mark.parametrize(
    ("family", "parallel", "says"),
    [
        ("qwen2", {"pipeline": 2}, "stages"),
        ("qwen3-moe", {"expert": 2}, "cut experts"),
        ("qwen2", {"tensor": 2}, "even cuts"),  # 101 tokens
    ],
)
def test_layouts_that_vllm_does_not_know_are_refused(ranks, tmp_path, family, parallel, says):
    path = write_model(family, tmp_path)
    assert all(says in found for found in ranks.run(2, local_shards, path, parallel))
