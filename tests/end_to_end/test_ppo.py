"""PPO on the real stack: critic and reference on ranks and in layouts of their own.

The run is cut and goes on without Ray, all models on the same ranks by turns and Adam's states on the
host, as if nothing happened.
"""

import shutil

from megarlhf.models.spec import ModelSpec
from tests.end_to_end.conftest import figures, under_torchrun

# Actor in two parts, critic on two stages, reference whole; one rollout is the critic's alone.
PPO = (
    "algorithm.name=ppo",
    "model.parallel.tensor=2",
    "critic.parallel.pipeline=2",
    "cluster.actor_ranks=2",
    "cluster.critic_ranks=2",
    "cluster.reference_ranks=1",
    "critic.optimizer.lr=1e-3",
    "critic.warmup_rollouts=1",
    "critic.export=true",
)


def test_actor_and_critic_learn_and_go_on(tmp_path, rl_command, run_cli):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = (*PPO, "train.steps=3", "train.save_every=1")
    run_cli(rl_command(whole, *settings))
    rows = [row for row in figures(whole) if "critic_loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert ["loss" in row for row in rows] == [False, True, True]
    assert rows[1]["logprob_gap"] < 2e-6
    assert ModelSpec.read(whole / "critic").scalar_head == "score"
    assert ModelSpec.read(whole / "model").scalar_head is None

    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step-00000003")
    on_host = ("optimizer.offload=states", "critic.optimizer.offload=states")
    run_cli(under_torchrun(rl_command(cut, *settings, *on_host), 2))
    assert figures(cut) == figures(whole)


def test_a_critic_with_another_tokenizer_is_refused(tmp_path, rl_command, run_cli):
    from transformers import AutoTokenizer

    from megarlhf.demo.model import make_model

    other = tmp_path / "critic"
    make_model(other, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(other)
    command = rl_command(tmp_path / "run", "algorithm.name=ppo", f"critic.path={other}")
    text = run_cli(command, status=2)
    assert "critic.path" in text and "tokenizer" in text
