"""What the ranks run in the models' tests."""

import errno
from pathlib import Path

import torch

from megarlhf.config.schema import ModelConfig, ParallelConfig
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.errors import UserError
from megarlhf.models.rotary import PackedLayout
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import export, row_files
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology


def load(rank, world, path, parallel, dtype="float32"):
    config = ModelConfig(path=str(path), dtype=dtype, parallel=ParallelConfig(**parallel))
    topology = Topology.of(config.parallel, world)
    groups = make_groups(topology, seed=1)
    spec = ModelSpec.read(path)
    return ModelEngine(spec, config, topology, groups, rank, micro_batch_tokens=64)


def load_and_export(rank, world, path, parallel, directory, dtype="float32", shard_bytes=None):
    """With ``shard_bytes`` a bucket holds a third of a shard, so that tensors go in several."""
    engine = load(rank, world, path, parallel, dtype)
    normal = export.SHARD_BYTES, export.BUCKET_BYTES
    if shard_bytes is not None:
        export.SHARD_BYTES, export.BUCKET_BYTES = shard_bytes, shard_bytes // 3
    try:
        _export(engine, directory, dtype)
    finally:
        export.SHARD_BYTES, export.BUCKET_BYTES = normal


def export_to_a_full_disk(rank, world, path, directory):
    """The `UserError` that every rank raises; it is the last one's disk that is full."""
    engine = load(rank, world, path, {"tensor": world})
    normal = row_files.os.pwrite, export.SHARD_BYTES
    row_files.os.pwrite = _fail if rank == world - 1 else normal[0]
    export.SHARD_BYTES = 10_000
    try:
        _export(engine, directory, "float32")
    except UserError as error:
        return str(error)
    finally:
        row_files.os.pwrite, export.SHARD_BYTES = normal
    return None


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
    raise OSError(errno.ENOSPC, "No space left on device")


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
