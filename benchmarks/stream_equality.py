"""After each update a live engine equals one that is freshly loaded from the same weights.

Greedy ids and their log-probabilities, for dense, tied, mixed and latent models, two engines, TP=2 and
EP=2. The fresh one is a second engine in which vLLM, after each update, builds a new model and loads it
from the files; now and then, and at the end, an engine in new processes as well, which says whether
the second engine is as good as new.
"""

import argparse
import hashlib
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.timing import table, write_json
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.rollout.settings import Sampling
from megarlhf.sync.engine_layout import EngineTopology, untouched_parameters
from tests.models.tiny import read_tensors
from tests.rollout.engine_process import EngineProcess, Trainer, prompts_of, settings_of
from tests.rollout.models import write_engine_model

GREEDY = Sampling(1, 0.0, 1.0, -1, 24)
PROMPTS = prompts_of([5, 6, 7], [1, 2, 3, 4, 5], [9, 8], [4])
State = tuple[list[Any], list[float]]  # what has to be the same, and what is to differ by nothing


@dataclass(frozen=True)
class Case:
    """What is updated.

    Attributes:
        samples: Whether answers are compared, or the bytes of all parameters where vLLM cannot compute:
            its CPU kernel takes a rank's whole experts for all there are, and reads past them.
    """

    family: str
    trainer: Topology
    engine: EngineTopology
    transport: str
    samples: bool = True


CASES = {
    "dense": Case("llama", Topology(world=2, tp=2), EngineTopology(), "shared_memory"),
    "tied": Case("qwen2-tied", Topology(world=2, pp=2), EngineTopology(), "gloo"),
    "mixture": Case("qwen3-moe", Topology(world=2, ep=2), EngineTopology(), "shared_memory"),
    "mixtral": Case("mixtral", Topology(world=2, tp=2), EngineTopology(), "gloo"),
    "two engines": Case("llama", Topology(world=2), EngineTopology(engines=2), "shared_memory"),
    "TP=2": Case("llama", Topology(world=2, pp=2), EngineTopology(2), "shared_memory"),
    "TP=2, mixture": Case("qwen3-moe", Topology(world=2, ep=2), EngineTopology(2), "gloo"),
    "EP=2, mixture": Case(
        "qwen3-moe", Topology(world=2, tp=2), EngineTopology(2, True), "gloo", samples=False
    ),
    "latent": Case("deepseek-v3", Topology(world=2, ep=2), EngineTopology(), "shared_memory"),
    "TP=2, latent": Case("deepseek-v2", Topology(world=2, pp=2), EngineTopology(2), "gloo"),
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream_equality", description=__doc__
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--new-every", type=int, default=20, help="updates between new processes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.cases:
        with tempfile.TemporaryDirectory() as directory:
            row = run(CASES[name], Path(directory), options.updates, options.new_every)
        rows.append({"case": name, **row})
        print(table(rows[-1:]), flush=True)
    write_json(options.json, rows)


def run(case: Case, directory: Path, updates: int, new_every: int) -> dict[str, Any]:
    """Compare after each update, and verify the fingerprints."""
    path = write_engine_model(case.family, directory)
    tensors, kept = read_tensors(path), untouched_parameters(ModelSpec.read(path))
    settings = settings_of(
        path, tensor_parallel=case.engine.tp, expert_parallel=case.engine.expert_parallel
    )
    engines = {number: EngineProcess(settings) for number in range(case.engine.engines)}
    second = EngineProcess(settings)
    seen, state = Seen(), answers if case.samples else parameters
    try:
        trainer = Trainer(path, case.trainer, case.engine, transport=case.transport)
        for number, engine in engines.items():
            trainer.connect(number, engine)
        second.wait(second.start("ready"), timeout_s=300)
        for update in range(1, updates + 1):
            weights = changed(tensors, kept, update)
            trainer.load(weights)
            trainer.update(engines, update)
            seen.rectangles += trainer.verify(engines)
            save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
            second.call(load_anew)
            truth = state(second)
            for engine in engines.values():
                seen.compare(state(engine), truth)
            if update % new_every == 0 or update == updates:
                seen.compare_new(of_new_engine(settings, state), truth)
    finally:
        for engine in [*engines.values(), second]:
            engine.close()
    return {"updates": updates, **seen.row()}


def changed(
    tensors: dict[str, torch.Tensor], kept: set[str], update: int
) -> dict[str, torch.Tensor]:
    """Other weights, every update's own; without what is not trained."""
    generator = torch.Generator().manual_seed(update)
    return {
        name: tensor
        if name in kept
        else tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
    }


def load_anew(engine: Any) -> None:
    """Runs in an engine: every worker builds a new model and loads it, as when it starts."""
    engine._llm.collective_rpc(_load_anew)
    engine._llm.reset_prefix_cache()


def _load_anew(worker: Any) -> None:
    """What a worker does when it starts.

    The new layers get what the worker had given to the old ones afterwards: memory for keys and values,
    and what goes with it.
    """
    config = worker.vllm_config.compilation_config
    before = dict(config.static_forward_context)
    config.static_forward_context.clear()
    config.static_all_moe_layers.clear()
    worker.load_model()
    for name, old in before.items():
        new = config.static_forward_context[name]
        for attribute, value in vars(old).items():
            if attribute == "kv_cache" or not hasattr(new, attribute):
                setattr(new, attribute, value)


def of_new_engine(settings: Any, state: Callable[[EngineProcess], State]) -> State:
    """What an engine in new processes answers, or has."""
    engine = EngineProcess(settings)
    try:
        engine.wait(engine.start("ready"), timeout_s=300)
        return state(engine)
    finally:
        engine.close()


def answers(engine: EngineProcess) -> State:
    """Greedy ids, and their log-probabilities."""
    groups = engine.call("generate", PROMPTS, GREEDY, [0] * len(PROMPTS))
    samples = list(itertools.chain.from_iterable(groups))
    logprobs = [logprob for sample in samples for logprob in sample.rollout_logprobs]
    return [sample.response_ids for sample in samples], logprobs


def parameters(engine: EngineProcess) -> State:
    """A digest of every parameter that each worker has in memory, in whatever layout."""
    return engine.call(_digests), [0.0]


def _digests(engine: Any) -> list[dict[str, str]]:
    """Runs in an engine."""

    def of_worker(worker: Any) -> dict[str, str]:
        return {
            name: hashlib.sha256(parameter.data.contiguous().view(torch.uint8).numpy()).hexdigest()
            for name, parameter in worker.get_model().named_parameters()
        }

    return engine._llm.collective_rpc(of_worker)


class Seen:
    """What was compared so far, and how it came out."""

    def __init__(self) -> None:
        self.rectangles = 0
        self._compared = self._equal = self._new = self._equal_new = 0
        self._gap = 0.0

    def compare(self, found: State, truth: State) -> None:
        """An engine that was updated, with the one that loaded."""
        same, gap = _differ(found, truth)
        self._compared, self._equal = self._compared + 1, self._equal + same
        self._gap = max(self._gap, gap)

    def compare_new(self, found: State, truth: State) -> None:
        """A new engine, with the one that loaded."""
        same, gap = _differ(found, truth)
        self._new, self._equal_new = self._new + 1, self._equal_new + (same and gap == 0)

    def row(self) -> dict[str, Any]:
        """For the table."""
        return {
            "rectangles verified": self.rectangles,
            "equal": f"{self._equal} of {self._compared}",
            "largest |log p difference|": self._gap,
            "new engines agree": f"{self._equal_new} of {self._new}",
        }


def _differ(found: State, truth: State) -> tuple[bool, float]:
    """Whether ids or digests are the same, and the largest difference of log-probabilities."""
    gaps = (abs(one - other) for one, other in zip(found[1], truth[1], strict=False))
    return found[0] == truth[0], max(gaps)


if __name__ == "__main__":
    main()
