"""What a Megatron checkpoint will consist of, byte by byte, before anything is written.

From shapes alone: the files that Megatron's ranks would write under a layout, and where in them the rows
of each Hugging Face tensor go.
"""

import functools
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import torch_archive
from megarlhf.models.weights.megatron_names import (
    GlobalParameter,
    global_parameters,
    has_layers_apart,
    owners,
)
from megarlhf.models.weights.megatron_runs import Chunk, stored_tensors
from megarlhf.models.weights.operations import Rect
from megarlhf.models.weights.row_files import StoredTensor
from megarlhf.parallel.topology import Topology

_ALIGNMENT = 64  # of archives in a file, and so of tensors


@dataclass(frozen=True, slots=True)
class _Record:
    """One archive of a file: a box of a global tensor, or an object without content."""

    key: str
    box: Rect | None
    offset: int
    length: int


@dataclass
class RankFile:
    """The file of one of Megatron's ranks.

    Attributes:
        file: Its name.
        nbytes: Its size.
        records: The archives in it.
        dtypes: Of every global tensor, by key.
    """

    file: str
    dtypes: Mapping[str, torch.dtype]
    nbytes: int = 0
    records: list[_Record] = field(default_factory=list)

    def add(self, key: str, box: Rect | None) -> int:
        """Put an archive behind the others; returns where its content will be."""
        head, nbytes, tail = self._parts(key, box)
        offset = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
        length = len(head) + nbytes + len(tail)
        self.records.append(_Record(key, box, offset, length))
        self.nbytes = offset + length
        return offset + len(head)

    def _parts(self, key: str, box: Rect | None) -> tuple[bytes, int, bytes]:
        if box is None:
            return _empty_object(), 0, b""
        dtype = self.dtypes[key]
        head, tail = torch_archive.head_and_tail(box.shape, dtype)
        return head, box.numel * dtype.itemsize, tail

    @property
    def fixed(self) -> Iterator[tuple[int, bytes]]:
        """What is in it beside the tensors' bytes, and where."""
        for record in self.records:
            head, nbytes, tail = self._parts(record.key, record.box)
            yield record.offset, head
            if tail:
                yield record.offset + len(head) + nbytes, tail


@dataclass(frozen=True)
class MegatronPlan:
    """A checkpoint that is to be written.

    Attributes:
        files: One a rank that has something to save.
        tensors: Every Hugging Face tensor and where its rows go.
        global_shapes: Of Megatron's tensors, by key.
        dtypes: Likewise.
    """

    files: tuple[RankFile, ...]
    tensors: dict[str, StoredTensor]
    global_shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    @cached_property
    def metadata(self) -> Metadata:
        """As `torch.distributed.checkpoint` has it."""
        chunks: dict[str, list[ChunkStorageMetadata]] = defaultdict(list)
        stored: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        places = {}
        for file in self.files:
            for record in file.records:
                place = _StorageInfo(file.file, record.offset, record.length)
                if record.box is None:
                    stored[record.key] = BytesStorageMetadata()
                    places[MetadataIndex(record.key)] = place
                    continue
                offsets = torch.Size(start for start, _ in record.box.ranges)
                sizes = torch.Size(record.box.shape)
                chunks[record.key].append(ChunkStorageMetadata(offsets, sizes))
                places[MetadataIndex(record.key, offsets)] = place
        for key, boxes in chunks.items():
            properties = TensorProperties(dtype=self.dtypes[key])
            size = torch.Size(self.global_shapes[key])
            stored[key] = TensorStorageMetadata(properties, size, boxes)
        return Metadata(stored, storage_data=places)


def plan_checkpoint(
    spec: ModelSpec, topology: Topology, dtypes: Mapping[str, torch.dtype]
) -> MegatronPlan:
    """What Megatron's ranks would save of a model.

    Args:
        spec: The model.
        topology: Under which layout.
        dtypes: Of every Hugging Face tensor.

    Raises:
        UserError: Tensors that are one for Megatron have several dtypes.
    """
    parameters = global_parameters(spec, layers_apart=has_layers_apart(spec))
    by_sources = {parameter.sources: parameter for parameter in parameters}
    by_key = _dtypes_by_key(spec, parameters, dtypes)
    files = [RankFile(f"__{rank}_0.distcp", by_key) for rank in range(topology.world)]
    chunks: dict[str, list[Chunk]] = defaultdict(list)
    for rank, held in owners(spec, topology):
        parameter, file = by_sources[held.sources], files[rank]
        tp_rank = topology.coordinates(rank).tp if held.partition_dim is not None else 0
        for box in parameter.boxes(tp_rank, topology.tp):
            offset = file.add(parameter.key, box)
            chunks[parameter.key].append(Chunk(box, by_key[parameter.key], file.file, offset))
        if tp_rank == 0 and parameter.extra_state is not None:
            file.add(parameter.extra_state, None)
    return MegatronPlan(
        tuple(file for file in files if file.records),
        stored_tensors(parameters, chunks),
        {parameter.key: parameter.global_shape(topology.tp) for parameter in parameters},
        by_key,
    )


def _dtypes_by_key(
    spec: ModelSpec, parameters: list[GlobalParameter], dtypes: Mapping[str, torch.dtype]
) -> dict[str, torch.dtype]:
    found: dict[str, torch.dtype] = {}
    for parameter in parameters:
        for name in parameter.sources:
            dtype = found.setdefault(parameter.key, dtypes[name])
            if dtypes[name] != dtype:
                raise UserError(
                    f"the tensor {name} is {dtypes[name]}, others of its kind are {dtype}",
                    where=str(spec.path),
                    fix="save the model in one dtype: for Megatron they are one tensor",
                )
    return found


@functools.cache
def _empty_object() -> bytes:
    """What Megatron saves where a module has nothing to say: an archive of ``[None]``."""
    content = io.BytesIO()
    torch.save([None], content)
    return content.getvalue()
