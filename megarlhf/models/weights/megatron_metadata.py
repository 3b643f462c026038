"""What a Megatron checkpoint says about its own files: ``.metadata``, ``metadata.json``, ``common.pt``.

``.metadata`` is a pickle, which could make its reader run anything. Here only the few classes that
belong in it can be made, whoever wrote the file.
"""

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.distributed.checkpoint.metadata import Metadata
from torch.serialization import _get_layout

from megarlhf.errors import UserError
from megarlhf.models.weights.row_files import full_disk_is_an_error

FILE = ".metadata"
LAST_FILE = "metadata.json"  # what Megatron writes last: with it a checkpoint is whole
COMMON_FILE = "common.pt"
COPY_AGAIN = "copy the checkpoint again, or convert it again"
_FORMAT = "torch_dist"


class _Ignored:
    """Stands for what Megatron adds to the metadata to save faster next time."""


_OWN = {
    metadata: (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    filesystem: ("_StorageInfo",),
    planner: ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"),
}
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module.__name__, name): getattr(module, name) for module in _OWN for name in _OWN[module]},
    **{("torch", name): value for name, value in vars(torch).items() if type(value) is torch.dtype},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): PosixPath,
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): _Ignored,
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"): _Ignored,
}


class _Unpickler(pickle.Unpickler):
    """Makes what belongs in the metadata, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place there")
        return _ALLOWED[module, name]


def is_megatron(directory: Path) -> bool:
    """Whether a directory holds a Megatron checkpoint, or half of one.

    Other programs' directories have a `LAST_FILE`, too: it alone does not say so.
    """
    named = any((directory / name).is_file() for name in (FILE, COMMON_FILE))
    return named or any(directory.glob("*.distcp"))


def read(directory: Path) -> Metadata:
    """Which tensors a checkpoint has, and where.

    Raises:
        UserError: No whole checkpoint of the torch_dist format.
    """
    last = directory / LAST_FILE
    if not last.is_file():
        raise UserError(
            f"not a whole checkpoint: {LAST_FILE} is missing",
            where=str(directory),
            fix="its writing was cut short: write it again, or go back to the one before",
        )
    try:
        found = json.loads(last.read_text())["sharded_backend"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"does not parse: {error!r}", where=str(last), fix=COPY_AGAIN) from None
    if found != _FORMAT:
        raise UserError(
            f"a checkpoint in the format {found!r}",
            where=str(last),
            fix=f"save it with --ckpt-format {_FORMAT}",
        )
    file = directory / FILE
    try:
        content = _Unpickler(io.BytesIO(file.read_bytes())).load()
        _check(content)
    except Exception as error:  # damaged bytes make a pickle raise anything
        raise UserError(f"does not parse: {error}", where=str(file), fix=COPY_AGAIN) from None
    return content


def _check(content: Any) -> None:
    """Raise where the parts are not what the reader takes them for."""
    if not isinstance(content, Metadata):
        raise TypeError(f"a {type(content).__name__} instead of metadata")
    for key, stored in content.state_dict_metadata.items():
        for chunk in getattr(stored, "chunks", ()):
            box = (*chunk.offsets, *chunk.sizes)
            if len(box) != 2 * len(stored.size) or not all(isinstance(n, int) for n in box):
                raise ValueError(f"a part of {key} is no box of it")
    for place in content.storage_data.values():
        if Path(place.relative_path).name != place.relative_path or place.offset < 0:
            raise ValueError(f"{place.relative_path!r} is not the name of a file beside it")
        if place.transform_descriptors:
            raise ValueError(f"the tensors are stored as {place.transform_descriptors}")


def notes(directory: Path) -> dict[str, Any]:
    """What the writer noted about a checkpoint; empty where it noted nothing that is plain data."""
    file = directory / COMMON_FILE
    if not file.is_file():
        return {}
    try:
        common = torch.load(file, map_location="cpu", weights_only=True)
        return dict(common["content_metadata"])
    except Exception:  # other programs put their arguments there, and it may be damaged
        return {}


def write(directory: Path, content: Metadata, notes: Mapping[str, Any]) -> None:
    """Make the files beside it a checkpoint; what says that it is whole comes last."""
    with full_disk_is_an_error(directory):
        torch.save({"content_metadata": dict(notes)}, directory / COMMON_FILE)
        (directory / FILE).write_bytes(pickle.dumps(content))
        last = {
            "sharded_backend": _FORMAT,
            "sharded_backend_version": 1,
            "common_backend": "torch",
            "common_backend_version": 1,
        }
        (directory / LAST_FILE).write_text(json.dumps(last))
