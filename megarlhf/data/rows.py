"""One row of a data set, and the checks that hold wherever it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megarlhf.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row of a data set.

    Attributes:
        values: The row, by key.
        where: Where it came from, for error messages: ``FILE:LINE``, or ``SOURCE, row N`` (from 1)
            where there are no lines.
    """

    values: dict[str, Any]
    where: str


def check_keys(row: Row, required_keys: Sequence[str]) -> None:
    """Refuse a row that lacks a key.

    Raises:
        UserError: Names the key and those that the row has.
    """
    for key in required_keys:
        if key not in row.values:
            present = ", ".join(repr(name) for name in row.values) or "none"
            raise UserError(
                f"the row has no key {key!r}; it has {present}",
                where=row.where,
                fix="correct the file, or set the data section's key to one that the rows have",
            )


def text_of(row: Row, key: str, name: str) -> str:
    """The text under ``key``, which messages call ``name``.

    Raises:
        UserError: It is no string, or blank.
    """
    value = row.values[key]
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"the {name} must be a string that is not blank, not {value!r:.200}",
            where=row.where,
            fix=f"correct the row or data.{name}_key",
        )
    return value


def number_of(row: Row, key: str, name: str) -> float:
    """The finite number under ``key``, which messages call ``name``.

    Raises:
        UserError: It is none (true and false are none).
    """
    value = row.values[key]
    finite = isinstance(value, int | float) and abs(value) < float("inf")  # NaN is not below
    if not finite or isinstance(value, bool):
        raise UserError(
            f"the {name} must be a finite number, not {value!r:.200}",
            where=row.where,
            fix=f"correct the row or data.{name}_key",
        )
    return float(value)
