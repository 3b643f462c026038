"""Checkpoint conversion: speed beside a plain copy of the files, and memory, both ways.

Random bf16 models of the shapes of Qwen2.5 0.5B (tied) and of a 2B Llama. Every way runs in a process
of its own; the ways take turns. With transformers: load the model and save it again, by itself or with
Megatron's dist_checkpointing (names and layout left as they are).
All of them, the plain copy too, end with the bytes on the disk.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import table, write_json
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.row_files import RowFiles
from tools.checkpoint_convert.targets import huggingface_target

_BLOCK = 2**20
COMMON = {"dtype": "bfloat16", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6}
MODELS = {
    "tiny": {  # to try the benchmark itself
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "0.5B": {
        **COMMON,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "2B": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 25,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": False,
    },
}
LAYOUT = ("--tp", "2", "--pp", "2")

# Each prints the seconds of its work, imports left out, and the most anonymous memory above that of the
# interpreter with torch, imports counted.
_MEASURE = """
import resource, sys, threading, time
import torch
torch.set_num_threads(1)

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

peak = floor = anonymous()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())

threading.Thread(target=watch, daemon=True).start()
{imports}
began = time.perf_counter()
{work}
seconds = time.perf_counter() - began
done.set()
print("measured", seconds, max(peak, anonymous()) - floor)
"""
_COPY = """
import os, shutil
# begin
shutil.copytree({source!r}, {out!r})
for name in os.listdir({out!r}):
    descriptor = os.open(os.path.join({out!r}, name), os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""
_CONVERT = """
from tools.checkpoint_convert.cli import main
# begin
assert main({arguments!r}) == 0
"""
_TRANSFORMERS = """
import os
from transformers import AutoModelForCausalLM
# begin
AutoModelForCausalLM.from_pretrained({source!r}, dtype="bfloat16").save_pretrained({out!r})
for name in os.listdir({out!r}):
    descriptor = os.open(os.path.join({out!r}, name), os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""


_DIST_CHECKPOINT = """
import os, tempfile
import torch.distributed as dist
from megarlhf.parallel import device
device.prepare()
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from transformers import AutoModelForCausalLM
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
os.mkdir({out!r})
# begin
model = AutoModelForCausalLM.from_pretrained({source!r}, dtype="bfloat16")
tensors = dict(model.named_parameters()).items()
dist_checkpointing.save(
    {{name: ShardedTensor.from_rank_offsets(name, tensor.data) for name, tensor in tensors}}, {out!r}
)
for name in os.listdir({out!r}):
    descriptor = os.open(os.path.join({out!r}, name), os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["0.5B", "2B"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="on the disk that is measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            rows += measure(model, Path(directory), options.rounds)
    print(table(rows))
    write_json(options.json, rows)


def measure(model: str, directory: Path, rounds: int) -> list[dict[str, Any]]:
    """Every way, ``rounds`` times in turns; medians."""
    source, megatron, out = directory / "hf", directory / "megatron", directory / "out"
    nbytes = write_random_model(source, MODELS[model])
    to_megatron = ["hf-to-megatron", "--hf", str(source), *LAYOUT, "--out"]
    run_apart(_CONVERT.format(arguments=[*to_megatron, str(megatron)]))
    to_hf = ["megatron-to-hf", "--megatron", str(megatron), "--out"]
    ways = {
        "plain copy": _COPY.format(source=str(source), out=str(out)),
        "HF to Megatron": _CONVERT.format(arguments=[*to_megatron, str(out)]),
        "Megatron to HF": _CONVERT.format(arguments=[*to_hf, str(out)]),
        "transformers": _TRANSFORMERS.format(source=str(source), out=str(out)),
        "transformers, Megatron": _DIST_CHECKPOINT.format(source=str(source), out=str(out)),
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            found[way].append(run_apart(work))
            shutil.rmtree(out)
    seconds = {way: statistics.median(s for s, _ in values) for way, values in found.items()}
    return [
        {
            "model": model,
            "way": way,
            "MB": nbytes / 1e6,
            "seconds": seconds[way],
            "MB/s": nbytes / 1e6 / seconds[way],
            "of a copy": seconds["plain copy"] / seconds[way],
            "peak MB": max(peak for _, peak in found[way]) / 1e6,
        }
        for way in ways
    ]


def run_apart(work: str) -> tuple[float, float]:
    """Seconds and peak bytes of some work in a process of its own.

    Args:
        work: Code; what stands before a line ``# begin`` is imports.
    """
    imports, _, work = work.rpartition("# begin")
    command = [sys.executable, "-c", _MEASURE.format(imports=imports, work=work)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("measured"))
    _, seconds, peak = line.split()
    return float(seconds), float(peak)


def write_random_model(directory: Path, config: dict[str, Any]) -> int:
    """A model whose numbers are random, a block at a time; returns its bytes."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    spec = ModelSpec.read(directory)
    target = huggingface_target(spec, dict.fromkeys(spec.tensors, torch.bfloat16))
    for file in target.files:
        with (directory / file.file).open("wb") as opened:
            opened.truncate(file.nbytes)
            opened.write(next(iter(file.fixed))[1])
    target.finish(directory)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2 * _BLOCK, generator=generator).mul_(0.02).bfloat16()
    with RowFiles(directory, target.tensors, writable=True) as files:
        for name, tensor in target.tensors.items():
            write_rows(files, name, tensor.row_bytes, tensor.rows, values)
        files.sync()
    return target.nbytes


def write_rows(files: RowFiles, name: str, row_bytes: int, rows: int, values: torch.Tensor) -> None:
    """Fill a tensor with slices of ``values``, each from another start."""
    raw = values.view(torch.uint8).numpy()
    most = max(1, len(raw) // 2 // row_bytes)
    for start in range(0, rows, most):
        count = min(most, rows - start)
        begin = start * 2 % (len(raw) // 2)
        block: np.ndarray[Any, Any] = raw[begin : begin + count * row_bytes]
        files.write_rows(name, start, block.reshape(count, row_bytes))


if __name__ == "__main__":
    main()
