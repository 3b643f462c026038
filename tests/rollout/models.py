"""Tiny models that vLLM's CPU kernels take (heads of 32, experts of 32 and more), with a tokenizer."""

import json
from pathlib import Path
from unittest import mock

from megarlhf.demo.model import make_model
from tests.models import zoo

WIDE = {"hidden_size": 128, "intermediate_size": 96, "vocab_size": 512}
HEAD = {"head_dim": 32}
LATENT = {  # the kernel knows latents of 512 beside 64
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
}

V3_ROUTER = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}  # said in published ones


def write_engine_model(family: str, directory: Path) -> Path:
    """A family of the zoo, with the demo's tokenizer beside it."""
    name, settings = zoo.FAMILIES[family]
    wide = {**settings, **(LATENT if "kv_lora_rank" in settings else HEAD)}
    if "moe_intermediate_size" in wide:
        wide["moe_intermediate_size"] = 40  # padded to 64 by the kernel
    if family == "deepseek-v3":
        wide |= V3_ROUTER
    make_model(directory, seed=1)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    with (
        mock.patch.dict(zoo.SIZES, {**WIDE, "vocab_size": vocabulary}),
        mock.patch.dict(zoo.FAMILIES, {family: (name, wide)}),
    ):
        return zoo.write_model(family, directory)
