"""Examples as Arrow's record batches, and back."""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from megarlhf.data.records import Example
from megarlhf.data.records import Sequence as TokenSequence

if TYPE_CHECKING:
    import pyarrow

FIELD, VALUE = "field:", "value:"  # prefixes of column names


def record_batch(examples: Sequence[Example]) -> "pyarrow.RecordBatch":
    """The examples as columns; all have the same names of fields and of values."""
    import pyarrow

    groups = [example.sequences for example in examples]
    columns = {
        "prompt_tokens": pyarrow.array([e.prompt_tokens for e in examples], pyarrow.int32()),
        "lengths": _lists([[[len(s.token_ids) for s in group]] for group in groups], "i", "int32"),
        "token_ids": _lists([[s.token_ids for s in group] for group in groups], "i", "int32"),
        "loss_mask": _lists([[s.loss_mask for s in group] for group in groups], "f", "uint8"),
    }
    if examples:
        for name in groups[0][0].fields:
            parts = [[s.fields[name] for s in group] for group in groups]
            columns[FIELD + name] = _lists(parts, "f", "float32")
        for name in examples[0].values:
            numbers = [example.values[name] for example in examples]
            columns[VALUE + name] = pyarrow.array(numbers, pyarrow.float64())
    return pyarrow.RecordBatch.from_pydict(columns)


def count_tokens(batch: "pyarrow.RecordBatch") -> tuple[int, int]:
    """How many tokens the examples have, and how many of them are trained on."""
    return len(flat(batch, "token_ids")), int(flat(batch, "loss_mask").sum(dtype=np.int64))


def read_example(batch: "pyarrow.RecordBatch", number: int) -> Example:
    """The example in a row of what `record_batch` made."""
    lengths = _entry(batch, "lengths", number).tolist()
    token_ids = _entry(batch, "token_ids", number).tolist()
    loss_mask = _entry(batch, "loss_mask", number).astype(np.float64).tolist()
    names = batch.schema.names
    fields = {
        name.removeprefix(FIELD): _entry(batch, name, number).tolist()
        for name in names
        if name.startswith(FIELD)
    }
    sequences, begin = [], 0
    for length in lengths:
        part = slice(begin, begin + length)
        cut = {name: values[part] for name, values in fields.items()}
        sequences.append(TokenSequence(token_ids[part], loss_mask[part], cut))
        begin += length
    values = {
        name.removeprefix(VALUE): batch.column(name)[number].as_py()
        for name in names
        if name.startswith(VALUE)
    }
    return Example(sequences, batch.column("prompt_tokens")[number].as_py(), values)


def _lists(groups: list[list[list[Any]]], typecode: str, kind: str) -> "pyarrow.ListArray":
    """A column with a list a row, of the joined lists of a group.

    Through `array`, which takes in a list several times faster than NumPy does.
    """
    import pyarrow

    numbers, ends = array(typecode), [0]
    for group in groups:
        for part in group:
            numbers.fromlist(part)
        ends.append(len(numbers))
    values = np.frombuffer(numbers, typecode).astype(kind, copy=False) if numbers else []
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(ends, pyarrow.int32()), pyarrow.array(values, kind)
    )


def _entry(batch: "pyarrow.RecordBatch", name: str, number: int) -> np.ndarray:
    """The list in a row of a column, without making Python objects of it."""
    column = batch.column(name)
    begin, end = column.offsets[number].as_py(), column.offsets[number + 1].as_py()
    return column.values.to_numpy(zero_copy_only=True)[begin:end]


def flat(batch: "pyarrow.RecordBatch", name: str) -> np.ndarray:
    """All rows' lists of a column, joined."""
    return batch.column(name).values.to_numpy(zero_copy_only=True)
