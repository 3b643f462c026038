"""What an offline run keeps between processes; the engine and its files are stood in for."""

import json
import math
from types import SimpleNamespace

import pytest

from megarlhf.config import loader
from megarlhf.config.schema import SFTConfig
from megarlhf.data.accounting import RowReport
from megarlhf.data.batches import ExampleStream
from megarlhf.data.records import Batch, Example, Sequence
from megarlhf.errors import UserError
from megarlhf.trainer import offline_run
from megarlhf.trainer.methods import METHODS

STEPS = 2


class Rows(list):
    token_hash = "of three rows"


@pytest.fixture
def process(tmp_path, monkeypatch):
    """An entered run of the first rank in ``tmp_path``, whose engine finds the given losses."""
    monkeypatch.setattr(offline_run.checkpoint, "save", lambda engine, directory: None)
    monkeypatch.setattr(offline_run, "write_result", lambda *_: None)
    overrides = [f"output.dir={tmp_path}", "output.tensorboard=false", "train.save_every=1"]
    overrides += ["train.max_skipped_steps=1"]
    config = loader.load(SFTConfig, None, overrides)
    row = Example([Sequence([1, 2], [0.0, 1.0])], prompt_tokens=1)
    inputs = SimpleNamespace(
        method=METHODS[SFTConfig],
        spec=None,
        topology=None,
        rows=SimpleNamespace(report=RowReport(rows=3, kept=3)),
        held_out=None,
        stream=ExampleStream(Rows([row] * 3), seed=1),
        total_steps=STEPS,
    )
    first_rank = SimpleNamespace(rank=0, first=lambda act: act())

    def process(*losses):
        left = iter(losses)
        run = offline_run.OfflineRun(config, inputs, first_rank)
        run._prepare = lambda examples: (Batch(row.sequences, []), None)
        run.engine = SimpleNamespace(
            chunks=[],
            train_step=lambda batch, loss, lr, groups: metrics_of(next(left)),
        )
        return run

    return process


def metrics_of(loss):
    """A step is skipped by the engine where the loss is no number."""
    return {"loss": loss, "grad_norm": 1.0, "skipped_steps": float(math.isnan(loss))}


def steps_of(run, *batches):
    for batch in batches:
        run.train_step(run.inputs.stream.next_batch(batch))


def test_a_finished_run_started_again_keeps_its_summary(process, tmp_path):
    with process(0.75, 0.5) as run:
        steps_of(run, 1, 1)
        assert run.finish(interrupted=False)["loss"] == 0.5
    with process() as run:
        assert run.step == STEPS
        run.finish(interrupted=False)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["loss"], summary["steps"]) == (0.5, STEPS)


def test_an_interrupted_run_goes_on_with_the_next_rows(process):
    with process(0.75) as run:
        steps_of(run, 2)
        state = run.inputs.stream.state_dict()
        assert run.finish(interrupted=True) == {"interrupted": True, "steps": 1}
    with process(0.5) as run:
        assert run.step == 1
        assert run.inputs.stream.state_dict() == state
        steps_of(run, 2)
        assert run.finish(interrupted=False)["loss"] == 0.5


def test_a_run_killed_before_its_checkpoint_counts_takes_the_step_again(
    process, monkeypatch, tmp_path
):
    def killed(*_):
        raise KeyboardInterrupt

    def logged():
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return [(row["step"], row["loss"]) for row in map(json.loads, lines)]

    with process(0.75, 0.5) as run:
        steps_of(run, 1)
        monkeypatch.setattr(run._directory.checkpoints, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            steps_of(run, 1)
    assert logged() == [(1, 0.75), (2, 0.5)]
    with process(0.5) as run:
        assert run.step == 1
        steps_of(run, 1)
    assert logged() == [(1, 0.75), (2, 0.5)]


def test_a_run_stopped_before_its_first_step(process):
    with process() as run:
        assert run.finish(interrupted=True) == {"interrupted": True, "steps": 0}
    with process(0.5, 0.25) as run:
        steps_of(run, 1, 1)
        assert run.finish(interrupted=False)["loss"] == 0.25


def test_skipped_steps_end_the_run_before_they_are_saved(process, tmp_path):
    nan = float("nan")
    with process(0.75, nan, 0.5, nan, nan) as run:
        steps_of(run, 1, 1, 1, 1)
        assert run._figures["loss"] == 0.5
        with pytest.raises(UserError, match="step 5 of the model: loss is not a finite number"):
            steps_of(run, 1)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]
    kept = sorted(path.name for path in (tmp_path / "skipped").iterdir())
    assert kept == [f"step-{step}-model.safetensors" for step in (2, 4, 5)]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in metrics] == [0.75, None, 0.5, None]
    assert [row["skipped_steps"] for row in metrics] == [0.0, 1.0, 0.0, 1.0]
    with process(nan) as run, pytest.raises(UserError, match="as in the 1 before it"):
        steps_of(run, 1)  # the count went into the checkpoint
