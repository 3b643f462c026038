"""What the ranks run in the models' tests."""

from pathlib import Path

import torch

from megarlhf.config.schema import ModelConfig, ParallelConfig
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.rotary import PackedLayout
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import export
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology


def load(rank, world, path, parallel, dtype="float32"):
    config = ModelConfig(path=str(path), dtype=dtype, parallel=ParallelConfig(**parallel))
    topology = Topology.of(config.parallel, world)
    groups = make_groups(topology, seed=1)
    spec = ModelSpec.read(path)
    return ModelEngine(spec, config, topology, groups, rank, micro_batch_tokens=64)


def load_and_export(rank, world, path, parallel, directory, dtype="float32", shard_bytes=None):
    engine = load(rank, world, path, parallel, dtype)
    normal = export.SHARD_BYTES
    export.SHARD_BYTES = shard_bytes or normal
    try:
        _export(engine, directory, dtype)
    finally:
        export.SHARD_BYTES = normal


def export_to_a_full_disk(rank, world, path, directory):
    """Whether it was noticed."""
    engine = load(rank, world, path, {})
    normal, export.save_file = export.save_file, _fail
    try:
        _export(engine, directory, "float32")
    except OSError:
        return True
    finally:
        export.save_file = normal
    return False


def _export(engine, directory, dtype):
    export.export_huggingface(
        engine.spec,
        engine.topology,
        engine.rank,
        engine.chunks,
        Path(directory),
        getattr(torch, dtype),
    )


def _fail(*_, **__):
    raise OSError("no space left on device")


def logits_of(rank, world, path, lengths, token_ids):
    """Logits [T, Vp] of sequences packed end to end, on one rank."""
    engine = load(rank, world, path, {})
    positions = torch.cat([torch.arange(length) for length in lengths])
    layout = PackedLayout(tuple(lengths), positions, max(lengths))
    with torch.no_grad():
        out = engine.chunks[0](
            input_ids=torch.tensor(token_ids)[None],
            position_ids=positions[None],
            attention_mask=None,
            packed_seq_params=layout,
        )
    return out[0]
