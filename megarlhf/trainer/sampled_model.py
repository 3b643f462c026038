"""The model that `megarlhf generate` samples from: as it is, or with adapters merged into it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from megarlhf.config.schema import LoraConfig, RLConfig
from megarlhf.errors import UserError
from megarlhf.models.build import DTYPES
from megarlhf.models.lora import peft_config
from megarlhf.models.lora.merging import merge
from megarlhf.models.spec import ModelSpec

MERGED = "merged"  # in output.dir, while it is sampled from


def check_adapters(config: RLConfig, spec: ModelSpec) -> None:
    """The adapters to sample with are there and belong to the model.

    Raises:
        UserError: They do not, or nothing says which they are.
    """
    lora = config.lora
    if not lora.is_on:
        return
    if lora.path is None:
        raise UserError(
            "nothing is trained here, and new adapters add nothing",
            where="lora.rank",
            fix="set lora.path to the adapters to sample with, or leave lora out",
        )
    if lora.base != "full":
        raise UserError(
            f"is {lora.base}, but adapters are sampled with merged into the base as it is on disk",
            where="lora.base",
            fix="leave it out",
        )
    peft_config.read(Path(lora.path), spec)


@contextmanager
def sampled_model(config: RLConfig) -> Iterator[RLConfig]:
    """A run's configuration with the model that engines load.

    Adapters are merged in fp32 and rounded once, to the engines' dtype. The merged model is in
    ``output.dir`` only meanwhile: every machine of the run sees it there.

    Raises:
        UserError: The adapters are for another base, or the disk is full.
    """
    if config.lora.path is None:
        yield config
        return
    directory = Path(config.output.dir) / MERGED
    dtype = DTYPES[config.rollout.dtype or config.model.dtype]
    merge(Path(config.model.path), Path(config.lora.path), directory, dtype)
    try:
        model = replace(config.model, path=str(directory))
        yield replace(config, model=model, lora=LoraConfig())
    finally:
        shutil.rmtree(directory)
