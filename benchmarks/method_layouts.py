"""Every offline method in several layouts against one rank: the largest difference over 10 steps.

In fp32, of the loss and of any metric but the gradient's norm, on tiny models with random rows: a Llama,
and a Mixtral for expert parallelism. Real ranks on this machine's CPU.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import write_json
from megarlhf.config import schema
from megarlhf.parallel.pool import RankPool
from tests.models.tiny import write_llama
from tests.models.zoo import write_model
from tests.trainer.offline_jobs import make_examples, train_methods

LAYOUTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "tp2.pp2.sp": ("llama", 4, {"tensor": 2, "pipeline": 2, "sequence": "true"}),
    "cp2.tp2.sp": ("llama", 4, {"tensor": 2, "context": 2, "sequence": "true"}),
    "dp2": ("llama", 2, {}),
    "ep2": ("mixtral", 2, {"expert": 2}),
}
RUNS = {
    "sft": (schema.SFTConfig, []),
    "rm, centred": (schema.RMConfig, ["loss.center_coef=0.1"]),
    "prm": (schema.PRMConfig, []),
    "dpo, smoothed with NLL": (
        schema.DPOConfig,
        ["loss.nll_coef=0.2", "loss.label_smoothing=0.1"],
    ),
    "dpo, IPO": (schema.DPOConfig, ["loss.kind=ipo"]),
    "kto, mismatched": (schema.KTOConfig, []),
    "kto, opposite": (schema.KTOConfig, ["loss.kl=opposite"]),
    "kd, forward": (schema.KDConfig, []),
    "kd, reverse, T=2": (schema.KDConfig, ["loss.divergence=reverse", "loss.temperature=2"]),
    "kd, js, top 7": (
        schema.KDConfig,
        ["loss.divergence=js", "loss.js_weight=0.3", "loss.top_k=7"],
    ),
}
VOCABULARY, BATCH = 101, 4


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method_layouts", description=__doc__
    )
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory, RankPool() as ranks:
        trained = _Trained(ranks, Path(directory), options.steps)
        for name in options.layouts:
            model, world, parallel = LAYOUTS[name]
            expected, found = trained.of(model, 1, {}), trained.of(model, world, parallel)
            results[name] = {
                run: largest(mine, theirs)
                for run, mine, theirs in zip(RUNS, found, expected, strict=True)
            }
            for run, worst in results[name].items():
                print(f"{name:12} {run:24} loss {worst['loss']:.1e}  any {worst['any']:.1e}")
    write_json(options.json, {"steps": options.steps, "results": results})


class _Trained:
    """The metrics of runs; those of a single rank are computed once."""

    def __init__(self, ranks: RankPool, directory: Path, steps: int) -> None:
        self._ranks, self._directory, self._steps = ranks, directory, steps
        teacher = write_llama(directory / "teacher", num_hidden_layers=5, seed=3)
        self._teacher = [f"teacher.path={teacher}", "teacher.dtype=float32"]
        self._data = make_examples(VOCABULARY, 12), make_examples(VOCABULARY, 5, seed=1)
        self._single: dict[str, Any] = {}

    def of(self, model: str, world: int, parallel: dict[str, Any]) -> Any:
        """For each run every step's metrics, then the held-out ones."""
        if world == 1 and model in self._single:
            return self._single[model]
        path = self._directory / model
        if not path.exists():
            write_model(model, path)
        runs = [
            (cls, [*own, *(self._teacher if cls is schema.KDConfig else [])])
            for cls, own in RUNS.values()
        ]
        arguments = (str(path), parallel, runs, *self._data, self._steps, BATCH)
        found = self._ranks.run(world, train_methods, *arguments)[0]
        if world == 1:
            self._single[model] = found
        return found


def largest(found: list[dict[str, float]], expected: list[dict[str, float]]) -> dict[str, float]:
    """The largest absolute difference over a run's steps, of the loss and of any metric."""
    worst = {"loss": 0.0, "any": 0.0}
    for mine, theirs in zip(found, expected, strict=True):
        for name in mine.keys() - {"grad_norm"}:
            difference = abs(mine[name] - theirs[name])
            worst["any"] = max(worst["any"], difference)
            if name == "loss":
                worst["loss"] = max(worst["loss"], difference)
    return worst


if __name__ == "__main__":
    main()
