"""Adapters merged into their base: a whole checkpoint, made tensor by tensor, a few rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megarlhf.errors import UserError
from megarlhf.models.lora import base_print, peft_config
from megarlhf.models.lora.adapter import PREFIX, AdapterSpec
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import fingerprint, publishing
from megarlhf.models.weights.export import SHARD_BYTES, finish
from megarlhf.models.weights.huggingface_files import HuggingFaceFiles
from megarlhf.models.weights.loading import (
    WeightFiles,
    check_fingerprints,
    check_names,
    open_weights,
)
from megarlhf.models.weights.row_files import RowFiles
from megarlhf.models.weights.safetensors_format import plan_shards


def merge(base: Path, adapters: Path, directory: Path, dtype: torch.dtype | None = None) -> None:
    """Write W + scaling * B A for every weight with an adapter, and all else as it is.

    A reward model's head, which is trained with its adapters, is taken from them.

    Args:
        base: The model that the adapters were trained for.
        adapters: In PEFT's format.
        directory: Where to; replaced if it is a model's already.
        dtype: Of the written tensors; None: the base's.

    Raises:
        UserError: Something is missing, damaged or of another model; something else is there; or the
            disk is full.
    """
    _check_place(directory.resolve(), base.resolve(), adapters.resolve())
    head = peft_config.head_of(adapters)
    spec = ModelSpec.read(base) if head is None else ModelSpec.read(base, scalar_head=head)
    source = _Source.open(peft_config.read(adapters, spec), adapters)
    check_fingerprints(source.weights, list(spec.tensors))
    base_print.check(adapters, spec)
    stored = source.weights.tensors
    kinds = {
        name: (
            spec.dtype_of(name, dtype or (stored[name].dtype if name in stored else torch.float32)),
            shape,
        )
        for name, shape in spec.tensors.items()
    }
    shards = plan_shards(kinds, SHARD_BYTES)
    publishing.create(directory, shards)
    written = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    prints = {}
    with RowFiles(publishing.partial_of(directory), written, writable=True) as target:
        for name, (kind, shape) in kinds.items():
            found = fingerprint.Hash()
            for start, values in source.blocks(name):
                rows = _bytes(values.to(kind))
                target.write_rows(name, start, rows)
                found.update(rows)
            prints[name] = fingerprint.TensorPrint(
                fingerprint.name_of(kind), shape, found.hexdigest()
            )
    finish(spec, directory, shards, dtype or kinds[next(iter(kinds))][0], prints)


def _check_place(directory: Path, *inputs: Path) -> None:
    """What will be replaced is nothing, or an earlier result."""
    fix = "write to a directory of its own"
    if any(directory in (given, *given.parents) for given in inputs):
        raise UserError("is also an input, or holds one", where=str(directory), fix=fix)
    if directory.exists() and not (directory / "config.json").is_file():
        raise UserError("it exists already, and is no model", where=str(directory), fix=fix)


@dataclass
class _Source:
    """Base and adapters, as one model's tensors."""

    spec: AdapterSpec
    weights: WeightFiles
    adapters: HuggingFaceFiles

    @classmethod
    def open(cls, spec: AdapterSpec, adapters: Path) -> "_Source":
        weights = open_weights(spec.base)
        check_names(spec.base, weights)
        return cls(spec, weights, HuggingFaceFiles(adapters))

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """First row and values, until the tensor is through; merged ones in fp32 or wider."""
        if self.spec.scalar_head is not None and name == f"{self.spec.scalar_head}.weight":
            yield 0, self.adapters.slice_of(PREFIX + name)[:]
            return
        stored = self.weights.tensors[name]
        module = PREFIX + name.removesuffix("weight")
        is_adapted = f"{module}lora_A.weight" in self.spec.tensors
        wide = torch.promote_types(stored.dtype, torch.float32)
        if is_adapted:
            down, up = (
                self.adapters.slice_of(f"{module}lora_{matrix}.weight")[:].to(wide)
                for matrix in "AB"
            )
        with self.weights.rows() as rows:
            for start, stop, block in rows.blocks(name):
                values = torch.from_numpy(block).view(stored.dtype)
                if is_adapted:
                    added = up[start:stop] @ down
                    values = values.to(wide) + self.spec.adapter.scaling * added
                yield start, values


def _bytes(values: torch.Tensor) -> np.ndarray:
    """uint8 [rows, bytes of a row]."""
    rows = values.shape[0] if values.ndim else 1
    return values.contiguous().view(torch.uint8).numpy().reshape(rows, -1)
