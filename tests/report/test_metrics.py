import json
import math

import pytest

from megarlhf.report.metrics import MetricsLog, RolloutLog
from megarlhf.report.trackers import TensorBoard, WeightsAndBiases


def log_steps(directory, *steps):
    log = MetricsLog(directory)
    for step in steps:
        log.write(step, {"reward": step / 10})
    return log


def steps(directory):
    return [record["step"] for record in MetricsLog.read(directory)]


def test_a_line_is_in_the_file_when_write_returns(tmp_path):
    log_steps(tmp_path / "new" / "run", 1, 2)
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert list(first) == ["step", "time", "reward"]
    assert (first["step"], first["reward"], len(lines)) == (1, 0.1, 2)


def test_reading_needs_no_file(tmp_path):
    assert MetricsLog.read(tmp_path) == []
    assert RolloutLog.read(tmp_path) == []


def test_not_finite_is_null(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    assert [record[key] for key in "abcd"] == [None, None, None, 1.5]


def test_a_metric_cannot_take_the_name_of_the_step(tmp_path):
    with pytest.raises(TypeError):
        MetricsLog(tmp_path).write(1, {"step": 2.0})


def test_truncate_drops_later_steps_and_a_resumed_run_has_no_duplicates(tmp_path):
    log_steps(tmp_path, 1, 2, 3, 4)
    log = MetricsLog(tmp_path)
    log.truncate_after(2)
    assert steps(tmp_path) == [1, 2]
    log.write(3, {})
    assert steps(tmp_path) == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]  # no draft left


def test_truncate_without_a_file(tmp_path):
    log = MetricsLog(tmp_path)
    log.truncate_after(0)
    assert steps(tmp_path) == []


@pytest.mark.parametrize("cut", [b'{"step": 3, "rew', b'{"step": 3, "text": "\xc3', b"{"])
def test_a_line_cut_short_is_not_read_and_truncate_drops_it(tmp_path, cut):
    log_steps(tmp_path, 1, 2)
    path = tmp_path / "metrics.jsonl"
    complete = path.read_bytes()
    path.write_bytes(complete + cut)
    assert steps(tmp_path) == [1, 2]
    MetricsLog(tmp_path).truncate_after(9)
    assert path.read_bytes() == complete


def test_writing_after_a_cut_line_loses_only_that_line(tmp_path):
    log = log_steps(tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "rew')
    log.write(3, {})
    assert steps(tmp_path) == [1, 3]


def test_a_failed_truncate_leaves_the_old_file(tmp_path, monkeypatch):
    log = log_steps(tmp_path, 1, 2)

    def disk_full(fd):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        log.truncate_after(1)
    assert steps(tmp_path) == [1, 2]


def test_rollouts_keep_any_text_and_label_and_follow_the_same_rule(tmp_path):
    log = RolloutLog(tmp_path)
    text = 'line\u2028break\n "quoted" ünï \ud800 <b>'
    for step in (1, 2):
        log.write(
            step,
            prompt=text,
            response="r",
            label={"answers": [4, math.nan]},
            reward=None,
            finish_reason="length",
        )
    expected = {
        "step": 1,
        "prompt": text,
        "response": "r",
        "label": {"answers": [4, None]},
        "reward": None,
        "finish_reason": "length",
    }
    assert RolloutLog.read(tmp_path)[0] == expected
    log.truncate_after(1)
    assert RolloutLog.read(tmp_path) == [expected]


def test_array_scalars_are_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    MetricsLog(tmp_path).write(
        1, {"a": numpy.float32(0.5), "b": numpy.float64("nan"), "c": numpy.int64(3)}
    )
    record = MetricsLog.read(tmp_path)[0]
    assert (record["a"], record["b"], record["c"]) == (0.5, None, 3)


def test_tensorboard_forgets_what_is_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, reward in ((1, 0.25), (3, 0.75)):
        log = MetricsLog(tmp_path, [TensorBoard(tmp_path)])
        if start > 1:
            log.truncate_after(start - 1)
        for step in range(start, start + 3):
            log.write(step, {"reward": reward})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("reward")]
    assert scalars == [(1, 0.25), (2, 0.25), (3, 0.75), (4, 0.75), (5, 0.75)]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (1, 3):
        log = MetricsLog(
            tmp_path, [WeightsAndBiases(tmp_path, "project", {"model": {"path": "m"}})]
        )
        log.truncate_after(start - 1)
        log.write(start, {"reward": 0.5})
        log.close()
    (name,) = {folder.name.split("-")[-1] for folder in (tmp_path / "wandb").glob("offline-run-*")}
    assert name == (tmp_path / WeightsAndBiases.FILE).read_text()
