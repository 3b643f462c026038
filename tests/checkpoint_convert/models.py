"""Models of every family with random tensors, written without building them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from megarlhf.models.spec import ModelSpec
from tests.models.zoo import FAMILIES, SIZES

LAYERS = 5  # enough for every pipeline, and divided by none


def config_of(family: str, **settings) -> dict:
    """``config.json`` of the zoo's model of a family, with other settings."""
    import transformers

    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **own, **settings})
    return {**config.to_dict(), "architectures": [f"{name}ForCausalLM"]}


def write_random(directory: Path, family: str, *, dtype=torch.bfloat16, seed=0, **settings) -> Path:
    """A directory as Hugging Face would write it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = config_of(family, **{"num_hidden_layers": LAYERS, "dtype": dtype, **settings})
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.model").write_bytes(b"a SentencePiece model")
    (directory / "additional_chat_templates").mkdir(exist_ok=True)
    (directory / "additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    generator = torch.Generator().manual_seed(seed)
    shapes = ModelSpec.read(directory).tensors
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def convert(*arguments: object) -> None:
    """Run the command line in this process."""
    from tools.checkpoint_convert.cli import main

    assert main([str(argument) for argument in arguments]) == 0
