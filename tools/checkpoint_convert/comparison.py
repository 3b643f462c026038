"""Compare two checkpoints of either kind, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from megarlhf.models.weights import fingerprint
from megarlhf.models.weights.row_files import RowFiles
from tools.checkpoint_convert.checkpoints import Checkpoint
from tools.checkpoint_convert.conversion import Progress


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same in both.

    Attributes:
        name: Hugging Face's.
        what: How it differs.
    """

    name: str
    what: str


def nbytes_of(checkpoint: Checkpoint) -> int:
    """Bytes of the model's tensors."""
    return sum(checkpoint.files.tensors[name].nbytes for name in checkpoint.spec.tensors)


def compare(a: Checkpoint, b: Checkpoint, progress: Progress) -> Iterator[Difference]:
    """Every difference, as it is found; the bytes that both have are read once, a few rows at a time.

    Args:
        a: The one.
        b: The other.
        progress: Told of the bytes of ``a`` that are done.

    Raises:
        UserError: A tensor is not what its checkpoint's fingerprint says.
    """
    yield from (
        Difference(n, "only in the first") for n in a.spec.tensors if n not in b.spec.tensors
    )
    yield from (
        Difference(n, "only in the second") for n in b.spec.tensors if n not in a.spec.tensors
    )
    prints = [fingerprint.read(checkpoint.directory) for checkpoint in (a, b)]
    with a.files.rows() as files_a, b.files.rows() as files_b:
        for name in a.spec.tensors:
            if name in b.spec.tensors:
                found = _compare(name, files_a, files_b, progress)
                for checkpoint, expected, hashed in zip((a, b), prints, found.prints, strict=True):
                    if expected is not None and hashed is not None:
                        fingerprint.check(name, hashed, expected.get(name), checkpoint.directory)
                if found.what is not None:
                    yield Difference(name, found.what)


@dataclass(frozen=True)
class _Comparison:
    what: str | None
    prints: tuple[fingerprint.TensorPrint | None, fingerprint.TensorPrint | None] = (None, None)


def _compare(name: str, files_a: RowFiles, files_b: RowFiles, progress: Progress) -> _Comparison:
    a, b = files_a.tensors[name], files_b.tensors[name]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        progress(a.nbytes)
        return _Comparison(
            f"{fingerprint.name_of(a.dtype)} {list(a.shape)} in the first, "
            f"{fingerprint.name_of(b.dtype)} {list(b.shape)} in the second"
        )
    hashes = fingerprint.Hash(), fingerprint.Hash()
    count, largest = 0, 0.0
    for (_, _, rows_a), (_, _, rows_b) in zip(
        files_a.blocks(name), files_b.blocks(name), strict=True
    ):
        for hash_, rows in zip(hashes, (rows_a, rows_b), strict=True):
            hash_.update(rows)
        if not np.array_equal(rows_a, rows_b):
            unequal, distance = _distance(rows_a, rows_b, a.dtype)
            count, largest = count + unequal, max(largest, distance)
        progress(rows_a.nbytes)
    dtype = fingerprint.name_of(a.dtype)
    prints = [fingerprint.TensorPrint(dtype, a.shape, hash_.hexdigest()) for hash_ in hashes]
    if not count:
        return _Comparison(None, (prints[0], prints[1]))
    share = f"{count} of {a.nbytes // a.dtype.itemsize} elements"
    return _Comparison(f"{share}, by up to {largest:.3g}", (prints[0], prints[1]))


def _distance(a: np.ndarray, b: np.ndarray, dtype: torch.dtype) -> tuple[int, float]:
    """How many elements have other bits, and the largest difference; infinite where one is NaN."""
    width = dtype.itemsize
    bits = [rows.reshape(-1, width) for rows in (a, b)]
    unequal = int((bits[0] != bits[1]).any(axis=1).sum())
    values = [torch.from_numpy(rows.reshape(-1)).view(dtype).double() for rows in (a, b)]
    return unequal, float((values[0] - values[1]).abs().nan_to_num(nan=float("inf")).max())
