"""Peak memory and time of the log-probabilities of tokens, with their gradient: chunked and naive.

Each way runs in a process of its own, from the same logits (as the model gives them, in bf16); shown is
what it takes beyond them. The floor is the gradient of the logits, which both must make.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import torch

from benchmarks.timing import table, write_json
from megarlhf.parallel.logprobs import vocab_parallel_logprobs


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logprobs_memory")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    floor = options.tokens * options.vocabulary * torch.bfloat16.itemsize
    rows = []
    for name in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak, seconds = pool.apply(measure, (name, options.tokens, options.vocabulary))
        rows.append(
            {
                "way": name,
                "peak MiB": peak / 2**20,
                "times the floor": peak / floor,
                "seconds": seconds,
            }
        )
    print(
        f"{options.tokens} tokens, vocabulary {options.vocabulary}; floor {floor / 2**20:.0f} MiB"
    )
    print(table(rows))
    write_json(options.json, rows)


def chunked(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Ours."""
    return vocab_parallel_logprobs(logits, targets, vocab_size=logits.shape[1])[0]


def naive(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A log-softmax of all logits in fp32."""
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


WAYS = {"chunked": chunked, "naive": naive}


def measure(way: str, tokens: int, vocabulary: int) -> tuple[int, float]:
    """Bytes beyond the logits at the highest moment of a forward and backward pass, and its seconds."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    WAYS[way](torch.zeros(8, 64, device=where), torch.zeros(8, dtype=torch.int64, device=where))
    logits = torch.randn(tokens, vocabulary, dtype=torch.bfloat16, device=where, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,), device=where)
    before = _restart_peak()
    began = time.perf_counter()
    WAYS[way](logits, targets).sum().backward()
    if where == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return _peak() - before, seconds


def _restart_peak() -> int:
    """Forget the highest moment so far; returns the bytes in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
