"""The values that adapters begin with: new ones, or those of files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import xxhash

from megarlhf.models.lora.adapter import AdapterSpec
from megarlhf.models.weights.huggingface_files import HuggingFaceFiles
from megarlhf.models.weights.layout import Parameter
from megarlhf.models.weights.operations import Shape


@torch.no_grad()
def set_values(
    spec: AdapterSpec,
    parameters: Sequence[Parameter],
    live: Sequence[Mapping[str, torch.nn.Parameter]],
    *,
    seed: int,
    start: Path | None,
) -> None:
    """Set this rank's A and B, and of adapters from files a scalar head too.

    Args:
        spec: The adapters.
        parameters: What this rank has of them.
        live: This rank's parameters, by chunk and name.
        seed: Of new values, which are the same under every layout.
        start: A directory in PEFT's format, checked before; None: new ones.
    """
    files = None if start is None else HuggingFaceFiles(start)
    for parameter in parameters:
        target = live[parameter.chunk][parameter.name]
        for piece in parameter.pieces:
            name = parameter.sources[piece.source]
            if files is not None:
                values = files.slice_of(name)[piece.hf.slices]
            elif name.endswith(".lora_A.weight"):
                values = _new(name, spec.tensors[name], seed)[piece.hf.slices]
            else:
                continue  # B begins at 0: nothing is added yet; a head is as it was loaded
            target[piece.local.slices].copy_(values)


def _new(name: str, shape: Shape, seed: int) -> torch.Tensor:
    """A's first values, as PEFT draws them: uniform within 1 / sqrt(in)."""
    generator = torch.Generator().manual_seed(
        xxhash.xxh64_intdigest(f"{seed} {name}".encode()) >> 1
    )
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
