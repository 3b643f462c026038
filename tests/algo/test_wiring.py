"""What an RL run does with an algorithm's settings: real losses, ranks that only take notes."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest

from megarlhf.algo.registry import ALGORITHMS, filled, find
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.cluster.device_turns import Separate
from megarlhf.config.schema import AlgorithmConfig, CriticConfig, RLConfig, RolloutConfig
from megarlhf.data.packing import collate
from megarlhf.data.records import Prompt, Sample
from megarlhf.trainer.experience import as_sequences
from megarlhf.trainer.rl_run import RLRun
from megarlhf.trainer.trained_models import TrainedModels

WITHOUT_CRITIC = [name for name, row in ALGORITHMS.items() if not row.needs_critic]


class Notes:
    """Stands where the ranks would: one packed micro-batch of each step, and its loss."""

    def __init__(self):
        self.asked, self.steps = [], []

    def merged(self, method, sequences, temperature):
        self.asked.append(method)
        return {i: [-1.0 - 0.1 * i] * len(s.token_ids) for i, s in enumerate(sequences)}

    def call(self, method, *arguments):
        return [(method, arguments)]

    def results(self, calls):
        return [getattr(self, method)(*arguments) for method, arguments in calls]

    def values(self, sequences):
        self.asked.append("values")
        return {i: [0.5] * len(s.token_ids) for i, s in enumerate(sequences)}

    def train(self, sequences, loss, lr):
        loss = pickle.loads(pickle.dumps(loss))  # as it travels
        batch = collate(sequences, range(len(sequences)))
        values = batch.fields["rollout_logprobs"].clone().requires_grad_()
        total, metrics = loss(values, None, batch)
        total.backward()
        self.steps.append(SimpleNamespace(sequences=sequences, loss=loss, lr=lr, grad=values.grad))
        tokens = batch.loss_mask.sum()
        metrics = {name: (value / tokens).item() for name, value in metrics.items()}
        metrics |= {"loss": total.item(), "grad_norm": values.grad.norm().item()}
        return {**metrics, "skipped_steps": 0.0}


def a_run(name="grpo", critic=None, **changes):
    settings = filled(AlgorithmConfig(name=name, **changes))
    rollout = RolloutConfig(prompts_per_step=2, samples_per_prompt=2, max_new_tokens=4)
    critic = critic or CriticConfig()
    config = replace(RLConfig(), algorithm=settings, rollout=rollout, critic=critic)
    inputs = SimpleNamespace(algorithm=find(name, settings.file), total_steps=10)
    run = RLRun(
        config, inputs, SimpleNamespace(checkpoints=SimpleNamespace(best=lambda: None)), None
    )
    run.actor, run.critic = Notes(), Notes() if inputs.algorithm.needs_critic else None
    run.turns = Separate(None)
    run.models = TrainedModels(config, inputs.algorithm, 10, run.actor, run.critic)
    return run


def groups(*rewards):
    return [
        [
            Sample(Prompt(i, "", (1, 2)), [3] * (1 + j), [-1.0] * (1 + j), 0, "stop", "", reward)
            for j, reward in enumerate(group)
        ]
        for i, group in enumerate(rewards)
    ]


def step(run, sampled):
    """As in the loop."""
    sequences = as_sequences(sampled)
    run.add_predictions(sequences)
    run.credit.assign(sampled, sequences)
    return run.update_models(sequences)


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_every_algorithm_goes_through_the_loop(name):
    run = a_run(name)
    metrics = step(run, groups((1.0, 0.0), (0.5, 2.0)))
    (done,) = run.actor.steps
    assert done.loss.algorithm == run.inputs.algorithm
    assert (done.grad != 0).any()
    assert metrics["kl_coef"] == run.config.algorithm.kl_coef
    asked = ["reference_logprobs"] if run.config.algorithm.kl_coef else []
    asked += ["logprobs"] if run.config.algorithm.kl_in == "reward" else []
    assert run.actor.asked == asked  # no reference without a coefficient, no pass without a need
    assert ("logprob_gap_max" in metrics) == ("logprobs" in asked)


def test_actor_and_critic_learn_from_the_same_rollout():
    run = a_run("ppo")
    metrics = step(run, groups((1.0, 0.0), (0.5, 2.0)))
    (actor,), (critic,) = run.actor.steps, run.critic.steps
    assert run.critic.asked == ["values"]
    assert actor.sequences == critic.sequences
    assert isinstance(critic.loss, ValueLoss)
    assert all({"advantages", "returns", "old_values"} <= s.fields.keys() for s in actor.sequences)
    assert (actor.lr, critic.lr) == (run.config.optimizer.lr, run.config.critic.optimizer.lr)
    assert {"loss", "kl", "critic_loss", "critic_value_loss", "critic_grad_norm"} <= metrics.keys()


def test_only_the_critic_learns_while_it_warms_up():
    run = a_run("ppo", critic=CriticConfig(warmup_rollouts=1))
    metrics = step(run, groups((1.0, 0.0), (0.5, 2.0)))
    assert (len(run.actor.steps), len(run.critic.steps)) == (0, 1)
    assert "loss" not in metrics
    run.step = 1
    step(run, groups((1.0, 0.0), (0.5, 2.0)))
    assert (len(run.actor.steps), len(run.critic.steps)) == (1, 2)


def test_several_passes_and_steps():
    run = a_run(epochs=3, updates_per_rollout=2)
    step(run, groups((1.0, 0.0), (0.5, 2.0)))
    assert [len(done.sequences) for done in run.actor.steps] == [2] * 6
    assert run.actor.asked.count("logprobs") == 1
    for epoch in range(3):
        taken = [id(s) for d in run.actor.steps[2 * epoch : 2 * epoch + 2] for s in d.sequences]
        assert len(set(taken)) == 4


def test_the_adaptive_coefficient_reaches_the_next_loss():
    run = a_run(kl_coef=0.1, kl_target=1e-9, kl_horizon=4)
    for _ in range(2):
        step(run, groups((1.0, 0.0), (0.5, 2.0)))
    used = [done.loss.config.kl_coef for done in run.actor.steps]
    assert used == pytest.approx([0.1, 0.12])  # 20% for 4 samples


def test_a_users_loss_arrives_at_the_ranks(tmp_path):
    file = tmp_path / "my_algorithm.py"
    file.write_text(
        "import torch\n"
        "from megarlhf.algo import advantages\n"
        "from megarlhf.algo.registry import Algorithm\n"
        "def surrogate(tokens, config):\n"
        "    return -tokens.advantages * tokens.logprobs, tokens.mask > 2\n"
        "ALGORITHM = Algorithm('own', advantages.dr_grpo, surrogate, defaults={'kl_coef': 0.0})\n"
    )
    run = a_run(file=str(file), aggregation="token_mean")
    step(run, groups((1.0, 0.0), (0.0, 4.0)))
    found = sorted(set(run.actor.steps[0].grad.tolist()))
    assert found == [-2.0, -0.5, 0.0, 0.5, 2.0]
