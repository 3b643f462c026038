"""PPO on the real stack: the critic on ranks and a layout of its own, stopped and gone on."""

import pytest

from megarlhf.models.spec import ModelSpec
from megarlhf.report.metrics import MetricsLog

# The actor on one rank, the critic on two stages; one rollout of it is the critic's alone.
PPO = (
    "algorithm.name=ppo",
    "critic.parallel.pipeline=2",
    "cluster.critic_ranks=2",
    "critic.optimizer.lr=1e-3",
    "critic.warmup_rollouts=1",
    "critic.export=true",
)


def test_actor_and_critic_learn_and_go_on(tmp_path, rl_command, run_cli):
    out = tmp_path / "run"
    run_cli(rl_command(out, *PPO, "train.steps=2"))
    run_cli(rl_command(out, *PPO, "train.steps=4"))
    rows = [row for row in MetricsLog.read(out) if "critic_loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert "loss" not in rows[0] and all("loss" in row for row in rows[1:])
    # The new head begins at zero; a critic that was lost on the way would begin so again.
    assert [row["critic_value"] == 0 for row in rows] == [True, False, False, False]
    assert rows[1]["logprob_gap"] == pytest.approx(0, abs=2e-6)
    assert ModelSpec.read(out / "critic").scalar_head == "score"
    assert ModelSpec.read(out / "model").scalar_head is None


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
