"""Tokenized rows that stay on disk between runs, and between the ranks of one."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megarlhf import __version__
from megarlhf.data.store import StoreInfo
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # of the files and of what the builders make of a row
ROWS, INFO = "rows.arrow", "info.json"


def fingerprint(parts: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> str:
    """A name for what ``parts`` (JSON types) and a tokenizer make of rows."""
    is_fast = getattr(tokenizer, "backend_tokenizer", None) is not None
    identity = {
        "format": [FORMAT, __version__],
        "tokenizer": tokenizer.backend_tokenizer.to_str() if is_fast else tokenizer.get_vocab(),
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        **parts,
    }
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cached(
    directory: Path, name: str, build: Callable[[Path], StoreInfo]
) -> tuple[Path, StoreInfo]:
    """The file ``name`` of the cache; made by one process while the others wait.

    Args:
        directory: The cache's directory.
        name: The `fingerprint`.
        build: Writes the rows to a file that it is given. Half a file is never seen: the entry
            gets its name when it is complete.

    Raises:
        UserError: The directory cannot be written.
    """
    entry = directory / name
    with _locked(directory, name):
        if not (entry / INFO).is_file():
            _fill(entry, build)
    return entry / ROWS, StoreInfo.from_dict(json.loads((entry / INFO).read_text()))


def _fill(entry: Path, build: Callable[[Path], StoreInfo]) -> None:
    unfinished = entry.with_name(f"{entry.name}.{os.uname().nodename}-{os.getpid()}")
    unfinished.mkdir()
    try:
        info = build(unfinished / ROWS)
        (unfinished / INFO).write_text(json.dumps(info.to_dict()))
        if not (entry / INFO).is_file():  # locks do not reach over some network file systems
            unfinished.rename(entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(directory: Path, name: str) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stream = (directory / f"{name}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"the cache of tokenized rows cannot be written: {error}",
            where="data.cache_dir",
            fix="give a directory that can be written, or leave data.cache_dir out",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
