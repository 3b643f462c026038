"""What a model's directory must hold before anything is read from it."""

import json
from pathlib import Path
from typing import Any

from megarlhf.errors import UserError


def read_model_config(path: str, key: str = "model.path") -> dict[str, Any]:
    """The parsed ``config.json`` of a Hugging Face model directory that also has weights.

    Args:
        path: The directory.
        key: The setting that names it.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UserError(
            f"no such directory: {directory}",
            where=key,
            fix="give a directory with config.json, *.safetensors and the tokenizer; "
            "`hf download NAME --local-dir DIR` fetches one from the Hugging Face hub",
        )
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(
            f"no config.json in {directory}",
            where=key,
            fix="give the directory of a Hugging Face checkpoint",
        )
    if not any(directory.glob("*.safetensors")) and not is_converted(directory):
        raise UserError(
            f"no *.safetensors in {directory}",
            where=key,
            fix="download the weights, or save them again with save_pretrained()",
        )
    try:
        model = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise UserError(
            f"{file} is not valid JSON: {error}", where=key, fix="repair it or download it again"
        ) from None
    if not isinstance(model, dict):
        raise UserError(
            f"{file} is not a JSON object", where=key, fix="repair it or download it again"
        )
    return model


def is_converted(directory: Path) -> bool:
    """Whether it holds weights in Megatron's format, as `tools/checkpoint_convert` makes them."""
    return (directory / "metadata.json").is_file()


def check_engine_weights(path: str) -> None:
    """vLLM can read the model's weights, too."""
    if is_converted(Path(path)):
        raise UserError(
            f"{path} is a checkpoint in Megatron's format, which vLLM does not read",
            where="model.path",
            fix="give the Hugging Face directory, or convert it back: docs/checkpoints.md",
        )
