"""A model of both kinds."""

import shutil

import pytest

from tests.checkpoint_convert.models import convert, write_random


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A Hugging Face directory and what was made of it, which nobody changes."""
    root = tmp_path_factory.mktemp("whole")
    write_random(root / "hf", "qwen2", num_hidden_layers=2)
    convert("hf-to-megatron", "--hf", root / "hf", "--out", root / "megatron", "--tp", 2)
    return root


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")
