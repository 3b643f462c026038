"""Adapters written in PEFT's format."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from megarlhf.models.lora import base_print
from megarlhf.models.lora.adapter import AdapterSpec
from megarlhf.models.lora.peft_config import WEIGHTS, write_config
from megarlhf.models.weights import publishing
from megarlhf.models.weights.export import write_shards
from megarlhf.models.weights.first_rank import on_first
from megarlhf.models.weights.safetensors_format import plan_file
from megarlhf.parallel.topology import Topology


def save_adapters(
    spec: AdapterSpec,
    topology: Topology,
    rank: int,
    chunks: Sequence[nn.Module],
    directory: Path,
    dtype: torch.dtype,
) -> None:
    """Write ``adapter_model.safetensors``, ``adapter_config.json`` and the base's fingerprint.

    The directory appears under its name only when it is whole. Collective over the model's ranks.

    Args:
        spec: The adapters.
        topology: The model's layout.
        rank: This rank.
        chunks: This rank's model chunks (not wrapped).
        directory: Where to; replaced if it exists.
        dtype: Of the written tensors.

    Raises:
        UserError: The disk is full.
    """
    shard = plan_file(WEIGHTS, {name: (dtype, shape) for name, shape in spec.tensors.items()})
    write_shards(spec, topology, rank, chunks, directory, [shard])
    base = base_print.of_base(spec.base, rank, topology.world)

    def finish() -> None:
        partial = publishing.partial_of(directory)
        write_config(spec, partial)
        base_print.write(partial, base)
        publishing.publish(directory)

    on_first(finish)
