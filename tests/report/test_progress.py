import io
from types import SimpleNamespace

import pytest

from megarlhf.report import progress as module
from megarlhf.report.progress import CLEAR_LINE, Column, Progress
from megarlhf.report.text import format_number, format_seconds


class Clock:
    """A clock that only moves when told."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def run_phase(progress, clock, name, seconds, **options):
    with progress.phase(name, **options):
        clock.now += seconds


def test_one_line_a_step(clock):
    out = io.StringIO()
    progress = Progress(100, "a run", out, done_steps=11)
    for name, seconds in (("generate", 0.9), ("train", 1.2), ("stream", 0.3)):
        run_phase(progress, clock, name, seconds)
    metrics = {"reward": 0.4121, "kl": 0.00312, "response_length": 9.81, "logprob_gap": 3.1e-7}
    progress.step_done(12, metrics)
    assert out.getvalue() == (
        "a run\n"
        "step  12/100  reward 0.412  kl 0.0031  length 9.8  gap 3.1e-07"
        " | generate 0.9s train 1.2s stream 0.3s | 2.4s/step  ETA 3m 31s\n"
    )


def test_columns_can_be_chosen_and_missing_or_null_metrics_are_left_out(clock):
    out = io.StringIO()
    columns = [Column("a", "A", ".1f"), Column("b", "B", "d"), Column("c", "C", ".2f")]
    progress = Progress(1, "t", out, columns=columns)
    progress.step_done(1, {"a": float("nan"), "b": None})
    assert out.getvalue().splitlines()[1] == "step 1/1  A nan | 0.00s/step"


def test_seconds_are_of_the_step_and_totals_of_the_run(clock):
    progress = Progress(2, "t", io.StringIO())
    run_phase(progress, clock, "load", 50, setup=True)
    for step in (1, 2):
        run_phase(progress, clock, "generate", 2)
        run_phase(progress, clock, "train", 1)
        run_phase(progress, clock, "generate", 3)
        assert progress.seconds() == {"seconds_generate": 5, "seconds_train": 1}
        progress.step_done(step, {})
        assert progress.seconds() == {}
    assert progress.totals() == {"load": 50, "generate": 10, "train": 2}


def test_the_time_of_a_phase_inside_another_counts_once(clock):
    progress = Progress(1, "t", io.StringIO())
    with progress.phase("train"):
        clock.now += 1
        run_phase(progress, clock, "offload", 2)
        clock.now += 4
    assert progress.seconds() == {"seconds_train": 5, "seconds_offload": 2}


def test_a_phase_that_fails_is_timed_and_left(clock):
    progress = Progress(1, "t", Terminal())
    with pytest.raises(ValueError, match="boom"), progress.phase("train"):
        clock.now += 1
        raise ValueError("boom")
    clock.now += 9
    assert progress.seconds() == {"seconds_train": 1}


def test_setup_does_not_slow_the_eta(clock):
    out = io.StringIO()
    progress = Progress(11, "t", out)
    clock.now += 30
    run_phase(progress, clock, "load", 50, setup=True)
    run_phase(progress, clock, "train", 2)
    progress.step_done(1, {})
    run_phase(progress, clock, "restart", 50, setup=True)
    run_phase(progress, clock, "train", 2)
    progress.step_done(2, {})
    assert out.getvalue().splitlines()[-1].endswith("2.0s/step  ETA 18s")


def test_the_eta_follows_recent_steps(clock):
    out = io.StringIO()
    progress = Progress(module.RECENT_STEPS + 11, "t", out)
    for step in range(1, module.RECENT_STEPS + 2):
        run_phase(progress, clock, "train", 1000 if step == 1 else 2)
        progress.step_done(step, {})
    assert out.getvalue().splitlines()[-1].endswith("2.0s/step  ETA 20s")


def test_the_last_step_has_no_eta(clock):
    out = io.StringIO()
    progress = Progress(1, "t", out)
    progress.step_done(1, {})
    assert "ETA" not in out.getvalue()


def test_a_log_file_gets_notes_and_long_phases_but_no_live_line(clock):
    out = io.StringIO()
    progress = Progress(1, "t", out)
    progress.note("4 ranks started")
    run_phase(progress, clock, "load", 1, setup=True)
    run_phase(progress, clock, "train", 1)
    assert out.getvalue() == "t\n4 ranks started\nload ...\n"


def test_a_terminal_shows_the_running_phase_in_a_line_that_is_taken_back(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    progress = Progress(20, "t", out, done_steps=8)
    run_phase(progress, clock, "train", 2)
    progress.step_done(9, {})
    with progress.phase("generate " + "x" * 99):
        live = out.getvalue().rpartition(CLEAR_LINE)[2]
        assert live.startswith("step 10/20  generate xxx")
        assert len(live) == 39
        progress.note("a note")
        assert f"{CLEAR_LINE}a note\n{CLEAR_LINE}step 10/20" in out.getvalue()
    assert out.getvalue().endswith(CLEAR_LINE)  # nothing is left on the line


def test_the_live_line_has_the_eta(clock):
    out = Terminal()
    progress = Progress(4, "t", out)
    run_phase(progress, clock, "train", 2)
    progress.step_done(1, {})
    with progress.phase("train"):
        assert out.getvalue().endswith("step 2/4  train ...  ETA 6.0s")


def test_table_is_aligned(clock, capsys):
    progress = Progress(1, "t")
    progress.table([("reward", "0.1 to 0.9"), ("time", "3m 31s")])
    progress.table([])
    assert capsys.readouterr().out == "t\n  reward  0.1 to 0.9\n  time    3m 31s\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00s"),
        (0.42, "0.42s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m 00s"),
        (211, "3m 31s"),
        (3599.6, "1h 00m"),
        (7500, "2h 05m"),
        (86400 * 3 + 3600 * 4, "3d 04h"),
    ],
)
def test_seconds_for_people(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.412345, "0.4123"),
        (12345, "12,345"),
        (1234.56, "1,235"),
        (3.14e-7, "3.14e-7"),
        (-0.0, "0"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_for_people(value, text):
    assert format_number(value) == text
