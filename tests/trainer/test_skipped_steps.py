"""What becomes of steps that were skipped: counted, kept, and too many of them end the run."""

import math

import pytest

from megarlhf.data.records import Sequence
from megarlhf.data.saved_batch import read_batch
from megarlhf.errors import UserError
from megarlhf.trainer.skipped_steps import KEPT, SkippedSteps, mean_of_taken

BATCH = [Sequence([5, 6, 7], [0.0, 1.0, 1.0], {"advantages": [0.1, 0.2, -0.3]})]
FINE = {"loss": 0.5, "grad_norm": 1.0, "skipped_steps": 0.0}
BROKEN = {"loss": math.nan, "grad_norm": math.inf, "skipped_steps": 1.0}


@pytest.fixture
def notes():
    return []


@pytest.fixture
def skipped(tmp_path, notes):
    return SkippedSteps(tmp_path, "actor", 2, notes.append)


def test_the_batch_is_kept_and_named(skipped, notes, tmp_path):
    skipped.see("step 3", BATCH, FINE)
    assert notes == [] and list(tmp_path.iterdir()) == []
    skipped.see("step 4", BATCH, BROKEN)
    (file,) = (tmp_path / "skipped").iterdir()
    assert notes == [
        "step 4 of the actor: loss and grad_norm is not a finite number; skipped, its batch is in "
        f"{file}"
    ]
    sequences, about = read_batch(file)
    assert sequences == BATCH
    assert about == {"step": "step 4", "model": "actor", "loss": "nan", "grad_norm": "inf"}


def test_too_many_in_a_row_end_the_run(skipped, tmp_path):
    for metrics in (BROKEN, BROKEN, FINE, BROKEN, BROKEN):
        skipped.see("step 1", BATCH, metrics)
    again = SkippedSteps(tmp_path, "actor", 2, print)  # the count survives a restart
    again.load_state_dict(skipped.state_dict())
    with pytest.raises(UserError, match="as in the 2 before it") as caught:
        again.see("step 2", BATCH, {**BROKEN, "loss": 0.5})
    assert caught.value.what.startswith("step 2 of the actor: grad_norm is not a finite number")
    assert caught.value.where == str(tmp_path / "skipped" / "step-2-actor.safetensors")
    assert "newest checkpoint" in caught.value.fix


def test_a_rank_that_does_not_own_the_directory_counts_too(tmp_path, notes):
    skipped = SkippedSteps(None, "model", 0, notes.append)
    with pytest.raises(UserError, match="step 1 of the model: loss and grad_norm"):
        skipped.see("step 1", BATCH, BROKEN)
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_batches_stay(skipped, tmp_path):
    for step in range(KEPT + 3):
        skipped.see(f"step {step}", BATCH, BROKEN if step % 2 else {**BROKEN})
        skipped.see("another", BATCH, FINE)
    assert len(list((tmp_path / "skipped").iterdir())) == KEPT


def test_metrics_are_means_over_the_steps_that_were_taken():
    other = {"loss": 1.5, "grad_norm": 2.0, "skipped_steps": 0.0}
    assert mean_of_taken([FINE, BROKEN, other]) == {
        "loss": 1.0,
        "grad_norm": 1.5,
        "skipped_steps": 1.0,
    }
    assert mean_of_taken([BROKEN, BROKEN]) == {"skipped_steps": 2.0}
