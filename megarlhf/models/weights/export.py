"""Write the model as a Hugging Face checkpoint, in parallel: each rank writes whole shards.

Shards are dealt to ranks; for each tensor of its shard the writer receives the rectangles it does
not hold itself. A rank holds at most one shard at a time.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import Holding, holdings
from megarlhf.parallel.topology import Topology

SHARD_BYTES = 4 * 2**30
# Everything in the source directory but weights is carried over: tokenizer, configs, templates.
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")


@torch.no_grad()
def export_huggingface(
    spec: ModelSpec,
    topology: Topology,
    rank: int,
    chunks: Sequence[nn.Module],
    directory: Path,
    dtype: torch.dtype,
) -> None:
    """Write a Hugging Face directory; it appears under its name only when it is whole.

    Collective over the trainer's ranks.

    Args:
        spec: The model; its tokenizer and configuration files are copied.
        topology: Its layout.
        rank: This rank.
        chunks: This rank's model chunks (not wrapped).
        directory: Where to; replaced if it exists.
        dtype: Of the written tensors.
    """
    partial = directory.with_name(directory.name + ".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    shards = _shards(spec, dtype)
    held = holdings(spec, topology)
    live = [dict(chunk.named_parameters()) for chunk in chunks]
    for number, names in enumerate(shards):
        writer = number % topology.world
        tensors = {}
        for name in names:
            tensor = _assemble(name, held[name], spec, live, rank, writer, dtype)
            if tensor is not None:
                tensors[name] = tensor
        if rank == writer:
            file = partial / _file_name(number, len(shards))
            save_file(tensors, file, metadata={"format": "pt"})
    dist.barrier()
    if rank == 0:
        _write_companions(spec, partial, shards, dtype)
        previous = directory.with_name(directory.name + ".previous")
        if directory.exists():
            shutil.rmtree(previous, ignore_errors=True)  # left by an export that was killed
            directory.rename(previous)
        partial.rename(directory)
        shutil.rmtree(previous, ignore_errors=True)
    dist.barrier()


def _assemble(
    name: str,
    parts: Sequence[Holding],
    spec: ModelSpec,
    live: Sequence[dict[str, nn.Parameter]],
    rank: int,
    writer: int,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """The whole tensor on the writer; None elsewhere."""
    whole = None
    for part in parts:
        if rank == part.rank:
            local = live[part.chunk][part.parameter][part.piece.local.slices]
            values = local.to(dtype).contiguous()
        elif rank == writer:
            device = next(iter(live[0].values())).device
            values = torch.empty(part.piece.hf.shape, dtype=dtype, device=device)
        if part.rank != writer and rank == part.rank:
            dist.send(values, writer)
        if part.rank != writer and rank == writer:
            dist.recv(values, part.rank)
        if rank == writer:
            if whole is None:
                whole = torch.empty(spec.tensors[name], dtype=dtype)
            whole[part.piece.hf.slices].copy_(values)
    return whole


def _shards(spec: ModelSpec, dtype: torch.dtype) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in spec.tensors.items():
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _file_name(number: int, count: int) -> str:
    return (
        "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
    )


def _write_companions(
    spec: ModelSpec, directory: Path, shards: Sequence[Sequence[str]], dtype: torch.dtype
) -> None:
    for file in spec.path.iterdir():
        if file.is_file() and file.name != "config.json" and not file.name.endswith(_WEIGHT_FILES):
            shutil.copy2(file, directory / file.name)
    config = spec.export_config
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).split(".")[1]
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if len(shards) > 1:
        total = sum(dtype.itemsize * torch.Size(shape).numel() for shape in spec.tensors.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {
                name: _file_name(number, len(shards))
                for number, names in enumerate(shards)
                for name in names
            },
        }
        file = directory / "model.safetensors.index.json"
        file.write_text(json.dumps(index, indent=2) + "\n")
