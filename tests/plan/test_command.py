"""The command, on a tiny model: a plan, its page, a search, and what is refused."""

import json

import pytest

from megarlhf.errors import UserError
from megarlhf.plan import tool
from megarlhf.plan.hardware import calibrated, gpu
from tests.models.tiny import CONFIG
from tests.plan import jobs

MACHINES = ("cluster.gpu=l40s", "cluster.gpus_per_node=2", "output.dir=o", "model.path=tiny")


@pytest.fixture
def shape(tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **CONFIG, "head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def settings(shape, *overrides, **options):
    small = ("data.max_prompt_tokens=32", "rollout.max_new_tokens=32", "rollout.prompts_per_step=8")
    return tool.Settings(None, (*MACHINES, *small, *overrides), model_config=shape, **options)


def test_a_plan_says_who_needs_what_and_how_long_it_takes(ranks, shape, tmp_path):
    out, page = tmp_path / "plan.json", tmp_path / "plan.html"
    ppo = settings(shape, "algorithm.name=ppo", "cluster.gpus_per_node=3", json=out, html=page)
    ((status, text),) = ranks.run(1, jobs.command, ppo)
    plan = json.loads(out.read_text())
    assert (status, plan["verdict"]) == (0, "fits")
    assert [place["name"] for place in plan["places"]] == ["actor", "critic", "engines"]
    names = [span["name"] for span in plan["spans"]]
    assert names == [
        *("generate", "score actor", "score reference", "score critic"),
        *("train actor", "train critic", "stream"),
    ]
    assert text.startswith("a run on 1 x 3 l40s (44.4 GiB each): fits")
    html = page.read_text()
    assert html.count("<svg") == 4  # the timeline, and each place's memory
    assert "<script" not in html and "http" not in html


def test_what_lies_beside_the_actor_is_planned(ranks, shape, tmp_path):
    out = tmp_path / "plan.json"
    beside = ("lora.rank=8", "ema.decay=0.9", "ptx.coef=0.1", "ptx.data.train=json@rows")
    ((status, _),) = ranks.run(1, jobs.command, settings(shape, *beside, json=out))
    actor, _ = json.loads(out.read_text())["places"]
    kinds = actor["phases"]["score"]
    assert status == 0
    assert kinds["average weights"] == kinds["main parameters"]  # of the adapters, both in fp32
    assert "reference weights" not in kinds  # the reference is the actor with its adapters off


def test_a_distillation_is_planned_with_its_teacher(ranks, shape, tmp_path):
    out = tmp_path / "plan.json"
    small = ("teacher.path=tiny", "data.max_tokens=64", "train.batch_size=8", "cluster.nodes=2")
    layouts = ("model.parallel.pipeline=2", "teacher.parallel.tensor=2")
    run = tool.Settings(None, (*MACHINES, *small, *layouts), "kd", shape, json=out)
    ((status, _),) = ranks.run(1, jobs.command, run)
    plan = json.loads(out.read_text())
    first, last = (place["phases"] for place in plan["places"])
    assert status == 0
    assert first["train"]["teacher weights"] == last["score"]["teacher weights"] > 0
    # Of two replicas each, in fp32: 8 / 2 sequences of 64 tokens, over the whole vocabulary.
    assert last["train"]["lessons"] == 4 * 64 * CONFIG["vocab_size"] * 4
    assert "lessons" not in first["train"]
    assert [span["name"] for span in plan["spans"]] == ["score teacher", "train model"]


def test_a_search_ranks_what_fits_a_limit(ranks, shape):
    run = settings(shape, search=True, memory=20.0)
    ((status, text),) = ranks.run(1, jobs.command, run, 4.0)
    assert status == 0
    assert "1. " in text and "rollout.engines=" in text
    assert "rollout.gpu_memory_utilization=0." in text  # of 44.4 GiB; the default takes 37.7


def refusal(ranks, options):
    ((status, text),) = ranks.run(1, jobs.command, options)
    assert status == 2
    return text


def test_what_is_missing_is_named(ranks, shape):
    assert "cluster.gpu" in refusal(ranks, settings(shape, "cluster.gpu=none"))
    named = tool.Settings(None, (*MACHINES, "model.path=no/such-model"))
    assert "--model-config" in refusal(ranks, named)


def test_figures_and_constants_are_looked_up():
    assert gpu("h100").tflops_bf16 == 989
    assert calibrated(["products=0.5"]).products == 0.5
    with pytest.raises(UserError, match="no figures of a GPU"):
        gpu("h1000")
    with pytest.raises(UserError, match="no constant"):
        calibrated(["product=0.5"])
