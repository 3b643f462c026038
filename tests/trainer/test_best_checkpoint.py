"""Which checkpoint is the best, and that it is kept."""

import math

import pytest

from megarlhf.config import loader
from megarlhf.config.schema import RLConfig, TrainConfig
from megarlhf.errors import UserError
from megarlhf.trainer.best_checkpoint import BestCheckpoint
from megarlhf.trainer.run_directory import RunDirectory

ACCURACY = TrainConfig(best_metric="eval_accuracy")


@pytest.mark.parametrize(
    ("best_is", "values", "improved"),
    [
        ("highest", [0.5, 0.5, 0.4, 0.7, math.nan, 0.6], [True, False, False, True, False, False]),
        ("lowest", [0.5, 0.5, 0.4, 0.7, math.nan, 0.3], [True, False, True, False, False, True]),
    ],
)
def test_the_first_of_the_best_ones(best_is, values, improved):
    best = BestCheckpoint(TrainConfig(best_metric="x", best_is=best_is), None)
    assert [best.beaten_by({"x": value, "y": 1.0}) for value in values] == improved
    assert not best.beaten_by({"y": 9.0})


def test_a_record_is_gone_on_from_unless_it_is_of_another_metric():
    record = {"step": 4, "metric": "eval_accuracy", "value": 0.9}
    assert not BestCheckpoint(ACCURACY, record).beaten_by({"eval_accuracy": 0.8})
    other = BestCheckpoint(TrainConfig(best_metric="eval_pass@4"), record)
    assert other.record is None and other.beaten_by({"eval_pass@4": 0.1})
    assert not BestCheckpoint(TrainConfig(), record).beaten_by({"eval_accuracy": 1.0})


def test_a_metric_that_no_evaluation_measures_is_refused():
    with pytest.raises(UserError, match="no evaluation measures 'eval_accuracy', but eval_loss"):
        BestCheckpoint(ACCURACY, None).check({"eval_loss": 0.1})


@pytest.fixture
def directory(tmp_path):
    overrides = [f"output.dir={tmp_path / 'out'}", "train.keep_checkpoints=2"]
    with RunDirectory("rl", loader.load(RLConfig, None, overrides)) as directory:
        yield directory


def save(directory, step):
    directory.checkpoints.commit(directory.checkpoints.begin(step), {"step": step})


def kept(directory):
    folders = (directory.path / "checkpoints").glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def test_the_best_one_stays_beside_the_newest(directory):
    assert directory.checkpoints.best() is None
    for step in range(1, 8):
        save(directory, step)
        if step in (2, 5):
            directory.checkpoints.mark_best(step, {"metric": "m", "value": step / 10})
    assert kept(directory) == [5, 6, 7]
    path, record = directory.checkpoints.best()
    assert path.name == "step-00000005"
    assert record == {"step": 5, "metric": "m", "value": 0.5}
    assert directory.checkpoints.newest().state["step"] == 7


def test_a_best_one_that_somebody_removed_is_none(directory):
    save(directory, 1)
    directory.checkpoints.mark_best(1, {"metric": "m", "value": 0.5})
    (directory.path / "checkpoints" / "step-00000001" / "trainer.json").unlink()
    assert directory.checkpoints.best() is None
