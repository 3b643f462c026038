"""Per-token numbers of many sequences on disk, found again by the sequences' tokens."""

import hashlib
import shutil
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.errors import UserError

KEYS, ENDS, VALUES = "keys.npy", "ends.npy", "values.npy"


class StoredLogprobs:
    """Reads what `write_logprobs` wrote.

    Args:
        directory: Where to it wrote.
    """

    def __init__(self, directory: Path) -> None:
        def opened(name: str) -> np.ndarray:
            return np.load(directory / name, mmap_mode="r", allow_pickle=False)

        self._directory = directory
        self._keys, self._ends, self._values = opened(KEYS), opened(ENDS), opened(VALUES)

    def __call__(self, sequences: Sequence[TokenSequence]) -> list[list[float]]:
        """For each sequence a float a token.

        Raises:
            UserError: A sequence is not among those that were written.
        """
        return [self._of(sequence) for sequence in sequences]

    def _of(self, sequence: TokenSequence) -> list[float]:
        key = _key(sequence)
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            raise UserError(
                "the cached log-probabilities of the reference lack a row of the data",
                where=str(self._directory),
                fix="remove this directory, so that they are computed again",
            )
        begin, end = self._ends[place], self._ends[place + 1]
        return self._values[begin:end].astype(np.float64).tolist()


def write_logprobs(directory: Path, found: Iterable[tuple[TokenSequence, Sequence[float]]]) -> None:
    """Write numbers of sequences into a new directory, which appears when it is complete.

    Args:
        directory: Must not exist.
        found: Sequences, each with a float a token. Kept as float32.
    """
    by_key = {_key(sequence): array("f", values) for sequence, values in found}
    keys = np.array(sorted(by_key), dtype=np.uint64)
    lengths = [0, *(len(by_key[int(key)]) for key in keys)]
    unfinished = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    np.save(unfinished / KEYS, keys)
    np.save(unfinished / ENDS, np.cumsum(lengths, dtype=np.int64))
    values = [np.frombuffer(by_key[int(key)], dtype=np.float32) for key in keys]
    np.save(unfinished / VALUES, np.concatenate(values))
    unfinished.rename(directory)


def _key(sequence: TokenSequence) -> int:
    """Hash of the token ids; two among ten million sequences share one with probability 3e-6."""
    ids = array("q", sequence.token_ids).tobytes()
    return int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest(), "little")
