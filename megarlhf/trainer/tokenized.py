"""Where a run keeps the rows that it has tokenized."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from megarlhf.config.schema import OutputConfig, RowDataConfig
from megarlhf.trainer.run_directory import TOKENIZED

Rows = TypeVar("Rows", bound=RowDataConfig)


def with_cache(data: Rows, output: OutputConfig) -> Rows:
    """Settings of rows that are kept in the run's directory, unless the user names another place."""
    if data.cache_dir is not None:
        return data
    return replace(data, cache_dir=str(Path(output.dir) / TOKENIZED))
