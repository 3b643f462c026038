"""What an offline run keeps between processes; the engine and its files are stood in for."""

import json
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
    monkeypatch.setattr(offline_run, "export_huggingface", lambda *_: None)
    overrides = [f"output.dir={tmp_path}", "output.tensorboard=false", "train.save_every=1"]
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
        run._prepare = lambda examples: (Batch([], []), None)
        run.engine = SimpleNamespace(
            chunks=[], train_step=lambda batch, loss, lr, groups: {"loss": next(left)}
        )
        return run

    return process


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


def test_a_run_stopped_before_its_first_step(process):
    with process() as run:
        assert run.finish(interrupted=True) == {"interrupted": True, "steps": 0}
    with process(0.5, 0.25) as run:
        steps_of(run, 1, 1)
        assert run.finish(interrupted=False)["loss"] == 0.25


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(process, tmp_path):
    with process(0.75, float("nan")) as run:
        steps_of(run, 1)
        with pytest.raises(UserError, match="loss of step 2 is not a finite number"):
            steps_of(run, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
