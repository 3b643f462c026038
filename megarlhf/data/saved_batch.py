"""A batch in a file, to be looked at and run again: safetensors, nothing but numbers.

The sequences lie end to end, in their order: ``lengths`` int64 [B], ``token_ids`` int64 [T], and in
float64 ``loss_mask`` [T], ``field.NAME`` [T] and ``value.NAME`` [B] for every name in
`megarlhf.data.records.Sequence`.
"""

import itertools
from collections import abc
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megarlhf.data.records import Sequence

FIELD, VALUE = "field.", "value."


def write_batch(
    file: Path, sequences: abc.Sequence[Sequence], about: abc.Mapping[str, str]
) -> None:
    """Write sequences that have the same fields and values.

    Args:
        file: Written anew.
        sequences: At least one.
        about: Texts for the file's header.
    """

    def tokens(rows: abc.Iterable[abc.Sequence[float]]) -> torch.Tensor:
        return torch.tensor([*itertools.chain.from_iterable(rows)], dtype=torch.float64)

    first = sequences[0]
    tensors = {
        "lengths": torch.tensor([len(s.token_ids) for s in sequences]),
        "token_ids": torch.tensor([token for s in sequences for token in s.token_ids]),
        "loss_mask": tokens(s.loss_mask for s in sequences),
        **{FIELD + name: tokens(s.fields[name] for s in sequences) for name in first.fields},
        **{VALUE + name: tokens([[s.values[name] for s in sequences]]) for name in first.values},
    }
    save_file(tensors, file, metadata=dict(about))


def read_batch(file: str | Path) -> tuple[list[Sequence], dict[str, str]]:
    """What `write_batch` wrote: the sequences, and what the header says about them."""
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    lengths = tensors.pop("lengths").tolist()
    ids = [part.tolist() for part in tensors.pop("token_ids").split(lengths)]
    masks = [part.tolist() for part in tensors.pop("loss_mask").split(lengths)]
    sequences = [Sequence(row, mask) for row, mask in zip(ids, masks, strict=True)]
    for name, tensor in tensors.items():
        per_token = name.startswith(FIELD)
        rows = tensor.split(lengths) if per_token else tensor
        for sequence, row in zip(sequences, rows, strict=True):
            place = sequence.fields if per_token else sequence.values
            place[name.removeprefix(FIELD if per_token else VALUE)] = row.tolist()
    return sequences, about
