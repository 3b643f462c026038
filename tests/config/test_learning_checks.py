"""Rules about ptx, the average, evaluations and the best checkpoint."""

import pytest

from megarlhf.config import checks, loader
from megarlhf.config.learning_checks import evaluation_metrics, evaluation_sets
from megarlhf.config.schema import RLConfig, SFTConfig
from megarlhf.errors import UserError
from tests.trainer.tiny_run import ROWS, write_rows, write_run


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    held_out = write_rows(directory / "more.jsonl", ROWS)
    return [*write_run(directory), f"data.eval_prompts={held_out}"], held_out


def refused(right, *overrides):
    with pytest.raises(UserError) as caught:
        checks.check_rl(loader.load(RLConfig, None, [*right[0], *overrides]))
    assert caught.value.fix
    return caught.value.where, caught.value.what


def test_what_is_right(right):
    rows = right[1]
    overrides = [
        f"evaluation.sets=[hard={rows},easy_2={rows}]",
        "evaluation.samples=8",
        "evaluation.pass_at=[1,8]",
        "train.best_metric=eval_pass@8_hard",
        "output.export_best=true",
        "ema.decay=0.99",
        "ptx.coef=0.1",
        f"ptx.data.train={rows}",
        "ptx.data.max_tokens=64",
        "data.curriculum=true",
    ]
    config = loader.load(RLConfig, None, [*right[0], *overrides])
    checks.check_rl(config)
    assert list(evaluation_sets(config)) == ["", "hard", "easy_2"]
    assert evaluation_metrics(config)[:4] == [
        *("eval_accuracy", "eval_pass@1", "eval_pass@8", "eval_accuracy_hard")
    ]


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (["ema.decay=1"], "ema.decay", "less than 1"),
        (["train.max_skipped_steps=-1"], "train.max_skipped_steps", "at least 0"),
        (["ptx.coef=0.1"], "ptx.coef", "needs ptx.data.train"),
        (["ptx.data.train=json@ROWS"], "ptx.data.train", "needs ptx.coef"),
        (
            ["ptx.coef=1", "ptx.data.train=json@/no/file"],
            "ptx.data.train",
            "no such file",
        ),
        (
            ["ptx.coef=1", "ptx.data.train=x", "ptx.data.eval=x"],
            "ptx.data.eval",
            "nothing is evaluated",
        ),
        (
            ["ptx.coef=1", "ptx.data.train=x", "ptx.data.max_tokens=4096"],
            "ptx.data.max_tokens",
            "max_position_embeddings",
        ),
        (
            [
                *("ptx.coef=1", "ptx.data.train=x", "ptx.data.max_tokens=64"),
                *("ptx.batch_size=3", "cluster.actor_ranks=2", "train.micro_batch_tokens=64"),
            ],
            "an update's samples + ptx.batch_size",
            "7 sequences",
        ),
        (["evaluation.sets=[json@x]"], "evaluation.sets", "has no name"),
        (["evaluation.sets=[a=x,a=y]"], "evaluation.sets", "comes twice"),
        (["evaluation.sets=[a=json@/no/file]"], "evaluation.sets", "no such file"),
        (["evaluation.pass_at=[2]"], "evaluation.pass_at", "pass@2 needs"),
        (["evaluation.samples=4", "evaluation.pass_at=[8]"], "evaluation.pass_at", "(4)"),
        (["evaluation.samples=4", "data.eval_prompts=null"], "evaluation.samples", "no held-out"),
        (["train.best_metric=reward"], "train.best_metric", "but eval_accuracy"),
        (
            ["train.best_metric=eval_accuracy", "data.eval_prompts=null"],
            "train.best_metric",
            "no held-out data",
        ),
        (["output.export_best=true"], "output.export_best", "nothing says"),
        (["data.curriculum=true", "data.shuffle=false"], "data.curriculum", "data.shuffle"),
    ],
)
def test_what_is_refused(right, overrides, where, what):
    found_where, found_what = refused(right, *overrides)
    assert found_where == where
    assert what in found_what


def test_a_best_metric_offline_needs_rows_to_evaluate_on(right, tmp_path):
    settings = [s for s in right[0] if s.startswith(("model.", "output."))]
    settings += [f"data.train={right[1]}", "data.output_key=answer", "data.max_tokens=64"]
    settings += ["train.best_metric=eval_loss", "train.best_is=lowest"]
    checks.check_offline(loader.load(SFTConfig, None, [*settings, f"data.eval={right[1]}"]), 1)
    with pytest.raises(UserError) as caught:
        checks.check_offline(loader.load(SFTConfig, None, settings), 1)
    assert (caught.value.where, caught.value.fix) == ("train.best_metric", "set data.eval")
