"""Write the model as a Hugging Face checkpoint, in parallel: each rank writes whole shards.

Shards are dealt to ranks. A tensor goes to its shard's writer a few rows at a time, so that no rank
ever holds more than a bucket of what is not its own; the writers' turns alternate, so that they write
at the same time.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import fingerprint, publishing
from megarlhf.models.weights.companions import copy_companions, write_config
from megarlhf.models.weights.first_rank import on_first
from megarlhf.models.weights.layout import Holding, holdings
from megarlhf.models.weights.operations import Rect
from megarlhf.models.weights.row_files import RowFiles, StoredTensor, full_disk_is_an_error
from megarlhf.models.weights.safetensors_format import INDEX, Shard, index_of, plan_shards
from megarlhf.parallel.topology import Topology

SHARD_BYTES = 4 * 2**30
BUCKET_BYTES = 32 * 2**20


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
        dtype: Of the written tensors; those that are not trained stay as they are, fp32.

    Raises:
        UserError: The disk is full.
    """
    tensors = {n: (spec.dtype_of(n, dtype), shape) for n, shape in spec.tensors.items()}
    shards = plan_shards(tensors, SHARD_BYTES)
    prints = write_shards(spec, topology, rank, chunks, directory, shards)
    on_first(lambda: finish(spec, directory, shards, dtype, prints))


@torch.no_grad()
def write_shards(
    spec: ModelSpec,
    topology: Topology,
    rank: int,
    chunks: Sequence[nn.Module],
    directory: Path,
    shards: Sequence[Shard],
) -> dict[str, fingerprint.TensorPrint]:
    """Write the tensors of a directory that is still to be published: see `export_huggingface`.

    Returns:
        Their prints.
    """
    on_first(lambda: publishing.create(directory, shards))
    writer = _Writer(publishing.partial_of(directory), shards, topology.world)
    held = holdings(spec, topology)
    live = [dict(chunk.named_parameters()) for chunk in chunks]
    with writer.files:
        for name, start, stop in writer.turns():
            rows = _gather(
                held[name], live, rank, writer.of(name), writer.tensor(name), start, stop
            )
            if rows is not None:
                writer.write(name, start, rows)
    return writer.all_prints()


class _Writer:
    """Which rank writes what when; and this rank's writing."""

    def __init__(self, directory: Path, shards: Sequence[Shard], world: int) -> None:
        tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
        self.files = RowFiles(directory, tensors, writable=True)
        self._shards_of = [shards[rank::world] for rank in range(world)]
        self._rank_of = {
            name: rank
            for rank, mine in enumerate(self._shards_of)
            for shard in mine
            for name in shard.tensors
        }
        self._hashes: dict[str, fingerprint.Hash] = {}
        self._failure: UserError | None = None

    def of(self, name: str) -> int:
        """The rank that writes a tensor."""
        return self._rank_of[name]

    def tensor(self, name: str) -> StoredTensor:
        """What a tensor is."""
        return self.files.tensors[name]

    def turns(self) -> Iterator[tuple[str, int, int]]:
        """Tensor, first row and the row behind the last, the writers taking turns."""
        queues = [self._turns_of(mine) for mine in self._shards_of]
        for together in itertools.zip_longest(*queues):
            yield from (turn for turn in together if turn is not None)

    def _turns_of(self, shards: Sequence[Shard]) -> Iterator[tuple[str, int, int]]:
        for name, tensor in ((n, t) for shard in shards for n, t in shard.tensors.items()):
            most = max(1, BUCKET_BYTES // max(tensor.row_bytes, 1))
            for start in range(0, tensor.rows, most):
                yield name, start, min(start + most, tensor.rows)

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write rows, which come in their order; a full disk shows in `all_prints`."""
        if self._failure is None:  # the others go on sending
            try:
                self.files.write_rows(name, start, rows)
            except UserError as error:
                self._failure = error
        self._hashes.setdefault(name, fingerprint.Hash()).update(rows)

    def all_prints(self) -> dict[str, fingerprint.TensorPrint]:
        """Of every tensor; collective.

        Raises:
            UserError: A rank could not write.
        """
        mine = {}
        for name, values in self._hashes.items():
            tensor, digest = self.tensor(name), values.hexdigest()
            dtype = fingerprint.name_of(tensor.dtype)
            mine[name] = fingerprint.TensorPrint(dtype, tensor.shape, digest)
        outcomes: list[Any] = [None] * len(self._shards_of)
        dist.all_gather_object(outcomes, (mine, self._failure))
        for _, failure in outcomes:
            if failure is not None:
                raise failure
        return {name: found for prints, _ in outcomes for name, found in prints.items()}


def _gather(
    parts: Sequence[Holding],
    live: Sequence[Mapping[str, nn.Parameter]],
    rank: int,
    writer: int,
    tensor: StoredTensor,
    start: int,
    stop: int,
) -> np.ndarray | None:
    """Rows ``[start, stop)`` of a tensor as bytes on the writer; None elsewhere."""
    whole = None
    if rank == writer:
        whole = torch.empty((stop - start, *tensor.shape[1:]), dtype=tensor.dtype)
    for part in parts:
        (top, bottom), *rest = part.piece.hf.ranges
        first, last = max(top, start), min(bottom, stop)
        if first >= last or rank not in (part.rank, writer):
            continue
        box = Rect(((first - start, last - start), *rest))
        if rank == part.rank:
            begin = part.piece.local.ranges[0][0] - top
            local = part.piece.local.along(0, begin + first, begin + last)
            values = live[part.chunk][part.parameter][local.slices]
            values = values.to(tensor.dtype).contiguous()
            if rank != writer:
                dist.send(values, writer)
        else:
            device = next(iter(live[0].values())).device
            values = torch.empty(box.shape, dtype=tensor.dtype, device=device)
            dist.recv(values, part.rank)
        if whole is not None:
            whole[box.slices].copy_(values)
    if whole is None:
        return None
    return whole.view(stop - start, -1).view(torch.uint8).numpy()


def finish(
    spec: ModelSpec,
    directory: Path,
    shards: Sequence[Shard],
    dtype: torch.dtype,
    prints: Mapping[str, fingerprint.TensorPrint],
) -> None:
    """Give a directory whose tensors are written its other files, and its name."""
    partial = publishing.partial_of(directory)
    copy_companions(spec, partial)
    write_config(spec, partial, dtype, is_trained=True)
    fingerprint.write(partial, prints)
    if len(shards) > 1:
        with full_disk_is_an_error(partial):
            (partial / INDEX).write_text(index_of(shards))
    publishing.publish(directory)
