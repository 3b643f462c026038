import json

import pytest

from megarlhf.config import loader
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.report import jsonl
from megarlhf.report.metrics import MetricsLog, RolloutLog
from megarlhf.trainer.run_log import EVALUATION_ANSWERS, EVALUATION_FILE, RunLog


@pytest.fixture
def open_log(tmp_path):
    def open_log(done_steps=0, **output):
        overrides = [f"output.{key}={value}" for key, value in output.items()]
        config = loader.load(RLConfig, None, ["output.tensorboard=false", *overrides])
        return RunLog(tmp_path, config, title="a title", total_steps=4, done_steps=done_steps)

    return open_log


def groups_of(count):
    prompts = [Prompt(index=i, text=f"p{i}", token_ids=(i,), label=f"l{i}") for i in range(count)]
    return [
        [Sample(prompt, [5, n], [-1.0, -1.0], 0, "stop", f"r{n}", reward=float(n)) for n in (1, 2)]
        for prompt in prompts
    ]


def write_steps(log, *steps):
    for step in steps:
        log.rollouts(step, groups_of(1))
        log.evaluation(step, "", groups_of(1))
        log.step(step, {"reward": 0.5})


def logged_steps(directory):
    return [
        [row["step"] for row in rows]
        for rows in (
            MetricsLog.read(directory),
            RolloutLog.read(directory),
            jsonl.read(directory / EVALUATION_FILE),
        )
    ]


def test_a_whole_run(tmp_path, open_log, capsys):
    log = open_log()
    log.point(0, {"eval_accuracy": 0.25})
    with log.progress.phase("train"):
        pass
    write_steps(log, 1)
    summary = {"steps": 1, "gap": 1.25e-7, "nothing": None, "seconds": {"train": 2.0}}
    log.finish(summary, {"checkpoint": tmp_path / "model"})

    before, first = MetricsLog.read(tmp_path)
    assert (before["step"], before["eval_accuracy"]) == (0, 0.25)
    assert (first["step"], first["reward"], first["seconds_train"]) == (
        1,
        0.5,
        pytest.approx(0, abs=1),
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert "a title" in (tmp_path / "report.html").read_text()
    printed = capsys.readouterr().out
    assert printed.startswith("a title\n")
    assert "step 1/4" in printed
    for shown in ("1.25e-07", "seconds train", "summary.json", "report.html", "metrics.jsonl"):
        assert shown in printed
    assert not (tmp_path / "tensorboard").exists()


def test_rollouts_are_the_first_sample_of_the_first_prompts(tmp_path, open_log):
    open_log(sampled_rollouts=2).rollouts(1, groups_of(3))
    row = {"step": 1, "response": "r1", "reward": 1.0, "finish_reason": "stop"}
    assert RolloutLog.read(tmp_path) == [
        {**row, "prompt": "p0", "label": "l0"},
        {**row, "prompt": "p1", "label": "l1"},
    ]


def test_answers_of_an_evaluation_keep_their_ids(tmp_path, open_log):
    open_log().evaluation(2, "", groups_of(EVALUATION_ANSWERS + 1))
    rows = jsonl.read(tmp_path / EVALUATION_FILE)
    assert len(rows) == EVALUATION_ANSWERS
    assert rows[1] == {
        "step": 2,
        "prompt": "p1",
        "response": "r1",
        "prompt_ids": [1],
        "response_ids": [5, 1],
        "label": "l1",
        "reward": 1.0,
    }


def test_a_resumed_run_has_every_step_once(tmp_path, open_log):
    write_steps(open_log(), 0, 1, 2, 3)
    write_steps(open_log(done_steps=2), 3, 4)
    assert logged_steps(tmp_path) == [[0, 1, 2, 3, 4]] * 3


def test_a_run_without_a_checkpoint_begins_its_logs_anew(tmp_path, open_log):
    write_steps(open_log(), 0, 1)
    write_steps(open_log(), 0)
    assert logged_steps(tmp_path) == [[0]] * 3


def test_tensorboard_is_written_and_named(tmp_path, open_log, capsys):
    log = open_log(tensorboard="true")
    log.step(1, {"reward": 0.5})
    log.finish({"seconds": {}}, {})
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert "tensorboard" in capsys.readouterr().out
