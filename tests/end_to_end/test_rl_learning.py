"""What is learned, averaged and measured beside the rollouts, on the real stack, stopped and gone on."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import figures

STEPS = 3


@pytest.fixture(scope="module")
def settings(prompts_file, tmp_path_factory):
    rows = tmp_path_factory.mktemp("ptx") / "rows.jsonl"
    lines = [{"input": f"what is {word}?", "output": word} for word in ("one", "two", "three")]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (
        *("model.parallel.tensor=2", "cluster.actor_ranks=2", f"train.steps={STEPS}"),
        *("train.save_every=1", "ema.decay=0.5"),
        *("ptx.coef=1", "ptx.batch_size=3", f"ptx.data.train=json@{rows}"),
        *("ptx.data.apply_chat_template=true", "ptx.data.max_tokens=32", "data.curriculum=true"),
        *("train.best_metric=eval_accuracy_again", "output.export_best=true"),
        f"evaluation.sets=[again=json@{prompts_file}]",
    )


MEASURE = ("train.eval_every=1", "evaluation.samples=4", "evaluation.pass_at=[1,4]")


def trained(run):
    """Figures without those of evaluations."""
    return [
        {key: value for key, value in row.items() if not key.startswith("eval_")}
        for row in figures(run)
        if "loss" in row
    ]


def test_everything_beside_the_rollouts(tmp_path, rl_command, run_cli, settings):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_cli(rl_command(whole, *settings, *MEASURE, "evaluation.pass_score=0.1"))
    rows = [row for row in MetricsLog.read(whole) if "loss" in row]
    assert [row["skipped_steps"] for row in rows] == [0.0] * STEPS
    assert max(row["logprob_gap"] for row in rows) < 2e-6
    assert rows[-1]["ptx_loss"] < rows[0]["ptx_loss"]
    for row in rows:
        assert row["eval_accuracy_again"] == row["eval_accuracy"]  # the same prompts
        assert 0 <= row["eval_pass@1"] <= row["eval_pass@4"] <= 1

    accuracies = [row["eval_accuracy_again"] for row in rows]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["best"] == max(accuracies)
    assert summary["best_step"] == 1 + accuracies.index(max(accuracies))
    kept = {int(path.name[5:]) for path in (whole / "checkpoints").glob("step-*")}
    assert kept == {summary["best_step"], STEPS - 1, STEPS}
    model, average, best = (
        load_file(whole / name / "model.safetensors") for name in ("model", "ema", "best")
    )
    assert model.keys() == average.keys() == best.keys()
    assert any(not average[name].equal(tensor) for name, tensor in model.items())
    same = all(best[name].equal(tensor) for name, tensor in model.items())
    assert same == (summary["best_step"] == STEPS)

    # It goes on from step 2 as if nothing had happened; that nothing is measured disturbs nothing.
    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    again = rl_command(cut, *settings, "train.eval_every=0", "train.save_every=0")
    shutil.rmtree(cut / "checkpoints" / f"step-{STEPS:08d}")
    run_cli(again)
    assert trained(cut)[-1] == trained(whole)[-1]
    averages = [load_file(run / "ema" / "model.safetensors") for run in (whole, cut)]
    assert all(averages[0][name].equal(tensor) for name, tensor in averages[1].items())
