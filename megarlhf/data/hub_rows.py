"""Rows that the library `datasets` loads: by name, from a saved directory, from CSV files."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from megarlhf.data.rows import Row
from megarlhf.errors import UserError


class HubRows:
    """One split of what `datasets` loads. It stays on disk, memory-mapped.

    Args:
        spec: A directory that ``save_to_disk`` wrote, or whatever ``datasets.load_dataset`` takes;
            ``NAME:CONFIG`` chooses one of a data set's configurations.
        split: Name of the split; None takes the one called ``train``, or the only one.
        builder: Read the file ``spec`` by this builder of `datasets` (``"csv"``).
    """

    def __init__(self, spec: str, split: str | None, builder: str | None = None) -> None:
        self.spec, self.split, self.builder = spec, split, builder

    def __iter__(self) -> Iterator[Row]:
        for number, values in enumerate(self.data, start=1):
            yield Row(dict(values), f"{self.spec}, row {number}")

    @property
    def identity(self) -> Any:
        """What changes when the rows do; JSON types only."""
        return [self.spec, self.split, getattr(self.data, "_fingerprint", None)]

    @cached_property
    def data(self) -> Any:
        """The ``datasets.Dataset``.

        Raises:
            UserError: It cannot be loaded, or has no such split.
        """
        path = Path(self.spec)
        if (path.is_absolute() or self.spec.startswith(".")) and not path.exists():
            raise UserError("no such file or directory", where=self.spec, fix="correct the path")
        try:
            data = self._load(path)
        except Exception as error:  # a library that raises whatever its many backends raise
            message = " ".join(str(error).split())
            raise UserError(
                f"`datasets` cannot load it: {type(error).__name__}: {message}",
                where=self.spec,
                fix="give a path or name that it can load, or json@PATH for JSON files",
            ) from error
        if isinstance(data, dict):
            return self._one_split(data)
        if self.split is not None and str(data.split) != self.split:
            raise UserError(
                f"it has no splits, so none called {self.split}",
                where=self.spec,
                fix="leave the split out, or save a DatasetDict with it",
            )
        return data

    def _load(self, path: Path) -> Any:
        import datasets  # slow to import, and files do without

        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(self.spec)
        if self.builder is not None:
            return datasets.load_dataset(self.builder, data_files=self.spec)
        name, _, configuration = (self.spec, "", "") if path.exists() else self.spec.partition(":")
        return datasets.load_dataset(*filter(None, (name, configuration)))

    def _one_split(self, splits: dict[str, Any]) -> Any:
        wanted = self.split or "train"
        if wanted in splits:
            return splits[wanted]
        if self.split is None and len(splits) == 1:
            return next(iter(splits.values()))
        raise UserError(
            f"there are several splits and none is called {wanted}: {', '.join(splits)}"
            if self.split is None
            else f"there is no split called {wanted}; it has {', '.join(splits)}",
            where=self.spec,
            fix="name one of them in data.split (data.eval_split for evaluation)",
        )
