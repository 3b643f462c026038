"""What `device.prepare` changes must not reach others in the same process."""

import subprocess
import sys

import pytest
import torch

from tests.models.tiny import write_llama

LOGITS = """
import sys, torch
if sys.argv[2] == "prepared":
    from megarlhf.parallel import device
    device.prepare()
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
print(model(torch.arange(5)[None]).logits.double().sum().item())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no preparation")
def test_transformers_computes_the_same_beside_megatron(tmp_path):
    path = write_llama(tmp_path / "model")

    def logits(how: str) -> str:
        command = [sys.executable, "-c", LOGITS, str(path), how]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert logits("prepared") == logits("plain")
