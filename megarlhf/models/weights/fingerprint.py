"""A checkpoint's fingerprint: a hash of every tensor's canonical bytes, and one of them all.

Canonical are the bytes of the whole Hugging Face tensor, row by row, little-endian, in the dtype that is
stored. So the fingerprint depends neither on the order of the tensors nor on how they were laid out
or cut into files: Hugging Face's and Megatron's form of one model have the same.

The hash is XXH3 with 128 bits: it finds damage at the speed of memory, it does not stop a forger.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from megarlhf.errors import UserError
from megarlhf.models.weights.operations import Shape
from megarlhf.models.weights.row_files import RowFiles, full_disk_is_an_error

FILE = "fingerprint.json"
ALGORITHM = "xxh3-128"

Hash = xxhash.xxh3_128  # update(bytes) in canonical order, then hexdigest()


@dataclass(frozen=True)
class TensorPrint:
    """What identifies one tensor.

    Attributes:
        dtype: As torch names it, e.g. ``bfloat16``.
        shape: Of the whole Hugging Face tensor.
        digest: Of its canonical bytes.
    """

    dtype: str
    shape: Shape
    digest: str


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def of_tensor(tensor: torch.Tensor) -> TensorPrint:
    """The print of a whole Hugging Face tensor in memory, on any device."""
    values = tensor.detach().cpu().contiguous().reshape(-1)
    digest = Hash(values.view(torch.uint8).numpy()).hexdigest()
    return TensorPrint(name_of(tensor.dtype), tuple(tensor.shape), digest)


def of_rows(files: RowFiles, name: str) -> TensorPrint:
    """The print of a tensor in files, read a few rows at a time."""
    tensor, found = files.tensors[name], Hash()
    for _, _, rows in files.blocks(name):
        found.update(rows)
    return TensorPrint(name_of(tensor.dtype), tensor.shape, found.hexdigest())


def of_model(prints: Mapping[str, TensorPrint]) -> str:
    """One hash for all of a model's tensors, in whatever order they are given."""
    lines = [f"{n} {p.dtype} {list(p.shape)} {p.digest}\n" for n, p in sorted(prints.items())]
    return Hash("".join(lines).encode()).hexdigest()


def write(directory: Path, prints: Mapping[str, TensorPrint]) -> None:
    """Put a fingerprint beside a checkpoint's tensors."""
    content = {
        "algorithm": ALGORITHM,
        "model": of_model(prints),
        "tensors": {
            name: {"dtype": p.dtype, "shape": list(p.shape), "digest": p.digest}
            for name, p in sorted(prints.items())
        },
    }
    with full_disk_is_an_error(directory):
        (directory / FILE).write_text(json.dumps(content, indent=1) + "\n")


def read(directory: Path) -> dict[str, TensorPrint] | None:
    """A directory's fingerprint; None where there is none.

    Raises:
        UserError: The file does not parse, or does not agree with itself.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    fix = "remove it to use the checkpoint unchecked"
    try:
        content = json.loads(file.read_text())
        if content["algorithm"] != ALGORITHM:
            raise UserError(
                f"the algorithm {content['algorithm']!r} is not known", where=str(file), fix=fix
            )
        prints = {
            name: TensorPrint(entry["dtype"], tuple(entry["shape"]), entry["digest"])
            for name, entry in content["tensors"].items()
        }
        agrees = of_model(prints) == content["model"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the fingerprint does not parse: {error!r}", where=str(file), fix=fix
        ) from None
    if not agrees:
        raise UserError("the fingerprint was changed by hand", where=str(file), fix=fix)
    return prints


def check(name: str, found: TensorPrint, expected: TensorPrint | None, directory: Path) -> None:
    """A tensor is the one that the fingerprint was taken of.

    Raises:
        UserError: It is not, or the fingerprint does not know it.
    """
    if found != expected:
        raise UserError(
            f"the tensor {name} is not the one that the fingerprint was taken of",
            where=str(directory / FILE),
            fix="copy the checkpoint again; if its weights were changed on purpose, remove this file",
        )
