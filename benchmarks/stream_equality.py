"""After each update a live engine equals one that is freshly loaded from the same weights.

Greedy ids and their log-probabilities, for dense, tied and mixed models, two engines, TP=2 and EP=2. The
fresh one is a new process each time, forked from one that has only imported vLLM.
"""

import argparse
import itertools
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.timing import table, write_json
from megarlhf.data.records import Sample
from megarlhf.parallel.topology import Topology
from megarlhf.rollout.settings import Sampling, engine_environment
from megarlhf.sync.engine_layout import EngineTopology
from tests.models.tiny import read_tensors
from tests.rollout.engine_process import EngineProcess, Trainer, prompts_of, settings_of
from tests.rollout.models import write_engine_model

PRELOADED = ("megarlhf.rollout.engine", "megarlhf.sync.receiver", "tests.rollout.engine_process")
GREEDY = Sampling(1, 0.0, 1.0, -1, 24)
PROMPTS = prompts_of([5, 6, 7], [1, 2, 3, 4, 5], [9, 8], [4])


@dataclass(frozen=True)
class Case:
    """What is updated."""

    family: str
    trainer: Topology
    engine: EngineTopology
    transport: str


CASES = {
    "dense": Case("llama", Topology(world=2, tp=2), EngineTopology(), "shared_memory"),
    "tied": Case("qwen2-tied", Topology(world=2, pp=2), EngineTopology(), "gloo"),
    "mixture": Case("qwen3-moe", Topology(world=2, ep=2), EngineTopology(), "shared_memory"),
    "mixtral": Case("mixtral", Topology(world=2, tp=2), EngineTopology(), "gloo"),
    "two engines": Case("llama", Topology(world=2), EngineTopology(engines=2), "shared_memory"),
    "TP=2": Case("llama", Topology(world=2, pp=2), EngineTopology(2), "shared_memory"),
    "TP=2, mixture": Case("qwen3-moe", Topology(world=2, ep=2), EngineTopology(2), "gloo"),
    "EP=2, mixture": Case("qwen3-moe", Topology(world=2, tp=2), EngineTopology(2, True), "gloo"),
}


class FreshEngine(EngineProcess):
    """An engine whose process need not import anything."""

    start_method = "forkserver"


def main() -> None:
    """Run from the command line."""
    os.environ.update(engine_environment(1, on_gpu=False))  # vLLM is imported with it
    multiprocessing.set_forkserver_preload(["vllm", "vllm.v1.worker.cpu_worker", *PRELOADED])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream_equality", description=__doc__
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--fresh-every", type=int, default=1, help="updates between comparisons")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.cases:
        with tempfile.TemporaryDirectory() as directory:
            row = run(CASES[name], Path(directory), options.updates, options.fresh_every)
        rows.append({"case": name, **row})
        print(table(rows[-1:]), flush=True)
    write_json(options.json, rows)


def run(case: Case, directory: Path, updates: int, fresh_every: int) -> dict[str, Any]:
    """Compare after some of the updates; verify the fingerprints after each."""
    path = write_engine_model(case.family, directory)
    tensors = read_tensors(path)
    settings = settings_of(
        path, tensor_parallel=case.engine.tp, expert_parallel=case.engine.expert_parallel
    )
    engines = {number: EngineProcess(settings) for number in range(case.engine.engines)}
    compared, equal, worst, verified = 0, True, 0.0, 0
    try:
        trainer = Trainer(path, case.trainer, case.engine, transport=case.transport)
        for number, engine in engines.items():
            trainer.connect(number, engine)
        for update in range(1, updates + 1):
            generator = torch.Generator().manual_seed(update)
            weights = {
                name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in tensors.items()
            }
            trainer.load(weights)
            trainer.update(engines, update)
            verified += trainer.verify(engines)
            if update % fresh_every:
                continue
            save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
            truth = of_fresh_engine(settings)
            for engine in engines.values():
                same, gap = compare(answers(engine), truth)
                compared, equal, worst = compared + 1, equal and same, max(worst, gap)
    finally:
        for engine in engines.values():
            engine.close()
    return {
        "updates": updates,
        "rectangles verified": verified,
        "compared": compared,
        "same ids": equal,
        "largest |log p difference|": worst,
    }


def of_fresh_engine(settings: Any) -> list[Sample]:
    """The answers of an engine that loads the model from its files."""
    alone = settings.tensor_parallel == 1  # workers of a forked engine would be forked once more
    engine = (FreshEngine if alone else EngineProcess)(settings)
    try:
        return answers(engine)
    finally:
        engine.close()


def answers(engine: EngineProcess) -> list[Sample]:
    """Greedy ones."""
    groups = engine.call("generate", PROMPTS, GREEDY, [0] * len(PROMPTS))
    return list(itertools.chain.from_iterable(groups))


def compare(found: list[Sample], truth: list[Sample]) -> tuple[bool, float]:
    """Whether the ids are the same, and the largest difference of log-probabilities if they are."""
    same = [one.response_ids for one in found] == [one.response_ids for one in truth]
    pairs = zip(found, truth, strict=True)
    gaps = (
        abs(a - b)
        for one, other in pairs
        for a, b in zip(one.rollout_logprobs, other.rollout_logprobs, strict=False)
    )
    return same, max(gaps)


if __name__ == "__main__":
    main()
