"""What lies beside the weights in a model's directory: configurations, tokenizer, templates."""

import json
import shutil
from pathlib import Path

import torch

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import fingerprint
from megarlhf.models.weights.padding import settle_padding
from megarlhf.models.weights.row_files import full_disk_is_an_error

_CONFIG = "config.json"
_WEIGHTS = (  # endings of files with weights, of any format
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".distcp",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
)
_MEGATRON = (".metadata", "metadata.json")
_TEMPLATES = "additional_chat_templates"  # a tokenizer's, if it has several


def copy_companions(spec: ModelSpec, directory: Path) -> None:
    """Copy everything but weights, and what describes them, from the model's directory."""
    with full_disk_is_an_error(directory):
        for file in spec.path.iterdir():
            is_left = file.name in (_CONFIG, fingerprint.FILE, *_MEGATRON)
            if file.is_file() and not is_left and not file.name.endswith(_WEIGHTS):
                shutil.copy2(file, directory / file.name)
        if (spec.path / _TEMPLATES).is_dir():
            shutil.copytree(
                spec.path / _TEMPLATES, directory / _TEMPLATES, dirs_exist_ok=True
            )  # it exists where a conversion goes on


def write_config(
    spec: ModelSpec, directory: Path, dtype: torch.dtype, *, is_trained: bool = False
) -> None:
    """Write the model's ``config.json`` as it is now, its weights having this dtype.

    Of a scalar head that is trained here it says how to read it: see `settle_padding`, for which the
    tokenizer's files are there already.
    """
    config = spec.export_config
    if is_trained and spec.scalar_head is not None:
        config["pad_token_id"] = settle_padding(directory, spec.full_config)
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = fingerprint.name_of(dtype)
    with full_disk_is_an_error(directory):
        (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
