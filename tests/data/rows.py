"""Rows as the tests look at them."""

from collections.abc import Sequence


class FirstSequences(Sequence):
    """The first sequence of every example; whatever else is asked, the rows answer."""

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        found = self._rows[index]
        return [e.sequences[0] for e in found] if isinstance(index, slice) else found.sequences[0]

    def __getattr__(self, name):
        return getattr(self._rows, name)
