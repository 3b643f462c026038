"""What an RL run keeps between processes, killed wherever it is; models and engines are stood in for."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from megarlhf.algo import registry
from megarlhf.config import loader
from megarlhf.config.schema import RLConfig
from megarlhf.report import jsonl
from megarlhf.trainer import rl_run
from megarlhf.trainer.kept_checkpoints import KeptCheckpoints
from megarlhf.trainer.rollouts import Rollout
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.run_log import EVALUATION_FILE, RunLog
from tests.trainer.made_up import sample_of

ACCURACIES = [0.1, 0.2, 0.9, 0.3, 0.5, 0.6, 0.7]  # after so many steps


class Killed(BaseException):
    """Nothing is done after it."""


class Process:
    """One process of a run in ``directory``: as the loop of `megarlhf.trainer.rl`.

    It is killed when the named point is reached for the given time.
    """

    def __init__(self, directory, monkeypatch, *overrides, killed_at=("", 0)):
        base = ["algorithm.kl_coef=0", "output.tensorboard=false", f"output.dir={directory}"]
        config = loader.load(RLConfig, None, [*base, *overrides])
        self._point, self._times = killed_at
        self._monkeypatch = monkeypatch
        self.total = config.train.steps
        with RunDirectory("rl", config) as claimed, monkeypatch.context() as patch:
            self.finished = claimed.finished_summary(self.total)
            if self.finished is None:
                self._run(config, claimed, patch)

    def _run(self, config, claimed, patch):
        inputs = SimpleNamespace(
            algorithm=registry.find("grpo"),
            total_steps=self.total,
            stream=SimpleNamespace(load_state_dict=lambda state: None),
        )
        for owner, name in (
            (RunLog, "step"),
            (RunLog, "point"),
            (RunLog, "finish"),
            (KeptCheckpoints, "commit"),
        ):
            patch.setattr(owner, name, self._killing(name, getattr(owner, name)))
        patch.setattr(rl_run.experience, "largest_gap", lambda sequences: {})
        run = rl_run.RLRun(config, inputs, claimed, None)
        if (newest := claimed.checkpoints.newest()) is not None:
            run._restore(newest.state)
        run.log = RunLog(
            claimed.path, config, title="", total_steps=self.total, done_steps=run.step
        )
        run.turns = SimpleNamespace(update=lambda step: 0, to_trainer=lambda: None)
        run._rollouts = SimpleNamespace(start=lambda step: None, undisturbed=nullcontext)
        run.models = SimpleNamespace(
            save=lambda directory: (directory / "weights").write_text(str(run.step)),
            export=lambda directory: directory / "model",
        )
        run.evaluation = _Evaluation(run)
        run.begin()
        while run.step < self.total:
            run._stream = {}
            sample = sample_of(0, run.step)
            sample.reward = 0.0
            run.finish_step(Rollout(run.step, [[sample]], {"at": run.step}), {"loss": run.step})
        run.finish(interrupted=False)

    def _killing(self, name, original):
        """Killed before it the first time counted, after it the second: 1 before, 2 after, ..."""

        def call(*args, **kwargs):
            self._reach(name)
            result = original(*args, **kwargs)
            self._reach(name)
            return result

        return call

    def _reach(self, name):
        if name == self._point:
            self._times -= 1
            if self._times == 0:
                raise Killed


class _Evaluation:
    def __init__(self, run):
        self._run = run

    def __bool__(self):
        return True

    def run(self, step):
        self._run.log.evaluation(step, "", [[sample_of(0, step)]])
        return {"eval_accuracy": ACCURACIES[step]}


def logged(directory):
    """The metrics without times, the evaluations, the best checkpoint and the summary."""
    rows = [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("seconds")}
        for row in jsonl.read(directory / "metrics.jsonl")
    ]
    evaluated = [row["step"] for row in jsonl.read(directory / EVALUATION_FILE)]
    summary = json.loads((directory / "summary.json").read_text())
    del summary["seconds"]
    return rows, evaluated, summary


SETTINGS = ("train.steps=5", "train.save_every=1", "train.eval_every=2", "train.keep_checkpoints=1")
BEST = ("train.best_metric=eval_accuracy",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        Process(directory, monkeypatch, *SETTINGS, *BEST)
    return logged(directory)


def test_every_step_is_logged_once_and_evaluated_where_it_is_due(whole):
    rows, evaluated, summary = whole
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert evaluated == [0, 2, 4, 5]
    assert [row["step"] for row in rows if "eval_accuracy" in row] == evaluated
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.1, 0.6)
    assert (summary["best_step"], summary["best"]) == (2, 0.9)


@pytest.mark.parametrize(
    "killed_at",
    [
        *[("point", 1), ("point", 2), ("step", 1), ("step", 2)],
        *[("step", 3), ("step", 4), ("step", 9), ("step", 10)],  # after step 2, the best; after 5
        *[("commit", 3), ("commit", 4)],
        *[("commit", 9), ("commit", 10), ("finish", 1)],
    ],
)
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(
    tmp_path, monkeypatch, whole, killed_at
):
    with pytest.raises(Killed):
        Process(tmp_path, monkeypatch, *SETTINGS, *BEST, killed_at=killed_at)
    Process(tmp_path, monkeypatch, *SETTINGS, *BEST)
    assert logged(tmp_path) == whole


def test_a_longer_run_is_complete_when_it_has_its_own_summary(tmp_path, monkeypatch):
    Process(tmp_path, monkeypatch, *SETTINGS)
    with pytest.raises(Killed):  # its last checkpoint is there, the shorter run's model too
        Process(tmp_path, monkeypatch, *SETTINGS, "train.steps=6", killed_at=("finish", 1))
    assert Process(tmp_path, monkeypatch, *SETTINGS, "train.steps=6").finished is None
    assert Process(tmp_path, monkeypatch, *SETTINGS, "train.steps=6").finished["steps"] == 6
    assert Process(tmp_path, monkeypatch, *SETTINGS, "train.steps=2").finished["steps"] == 6


def test_a_run_that_was_to_be_longer_is_evaluated_at_its_end(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        Process(tmp_path, monkeypatch, *SETTINGS, *BEST, killed_at=("commit", 6))
    Process(tmp_path, monkeypatch, *SETTINGS, *BEST, "train.steps=3")
    rows, evaluated, summary = logged(tmp_path)
    assert evaluated == [0, 2, 3]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3]
    assert summary["accuracy_after"] == ACCURACIES[3]
