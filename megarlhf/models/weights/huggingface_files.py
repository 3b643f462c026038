"""The tensors of a Hugging Face directory, read where they lie."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from megarlhf.errors import UserError
from megarlhf.models.weights import safetensors_format
from megarlhf.models.weights.row_files import RowFiles, StoredTensor


class HuggingFaceFiles:
    """The tensors of a Hugging Face directory, by name, opened lazily.

    Raises:
        UserError: No safetensors files, or an index that does not parse or names a missing file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[Path, Any] = {}
        self._file_of = self._find()

    def _find(self) -> dict[str, Path]:
        single = self.directory / safetensors_format.SINGLE
        if single.is_file():  # as transformers has it: whatever else is there is not the model
            return dict.fromkeys(safetensors_format.read_header(single), single)
        index = self.directory / safetensors_format.INDEX
        if index.is_file():
            try:
                names = dict(json.loads(index.read_text())["weight_map"])
                elsewhere = sorted({f for f in names.values() if Path(f).name != f})
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"the index does not parse: {error!r}", where=str(index)) from None
            if elsewhere:
                raise UserError(
                    f"the index names a file that is not beside it: {elsewhere[0]}",
                    where=str(index),
                )
            missing = sorted({f for f in names.values() if not (self.directory / f).is_file()})
            if missing:
                raise UserError(
                    f"shards named by the index are missing: {', '.join(missing)}",
                    where=str(index),
                    fix="copy the missing files into the directory",
                )
            return {name: self.directory / file for name, file in names.items()}
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            raise UserError(
                "there are no safetensors files",
                where=str(self.directory),
                fix="give a directory of a Hugging Face model with its weights as safetensors",
            )
        return {name: file for file in files for name in safetensors_format.read_header(file)}

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Where every tensor's bytes are.

        Raises:
            UserError: A shard is damaged, of another dtype, or not what the index says.
        """
        headers = {
            file: safetensors_format.read_header(file) for file in set(self._file_of.values())
        }
        for name, file in self._file_of.items():
            if name not in headers[file]:
                raise self._misplaced(name, "it is not there")
        return {name: headers[file][name] for name, file in self._file_of.items()}

    def rows(self) -> RowFiles:
        """To read the tensors by rows."""
        return RowFiles(self.directory, self.tensors)

    def where(self, name: str) -> str:
        """The file that holds a tensor."""
        return str(self._file_of.get(name, self.directory))

    def slice_of(self, name: str) -> Any:
        """A lazily read tensor: index it to read only those bytes."""
        if name not in self._file_of:
            raise UserError(
                f"the tensor {name} is missing",
                where=str(self.directory),
                fix="check that config.json and the weights belong together",
            )
        try:
            return self._handle(self._file_of[name]).get_slice(name)
        except SafetensorError as error:
            raise self._misplaced(name, error) from None

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            safetensors_format.read_header(file)  # says what is wrong with it
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]

    def _misplaced(self, name: str, why: object) -> UserError:
        return UserError(
            f"the tensor {name} cannot be read, though the index says it is here ({why})",
            where=str(self._file_of[name]),
            fix="copy the index and its shards again, from one place",
        )
