"""The same PPO run under every layout of actor and critic: fixed rollouts, ten of them.

Seen in fp32 over ten rollouts of two steps at a learning rate of 1e-3: advantages within 2.8e-6, metrics
(losses, values, gradient norms, KL) within 1.1e-6, relative or absolute.
"""

import random

import pytest

from megarlhf.algo import registry
from megarlhf.config.schema import (
    AlgorithmConfig,
    ClusterConfig,
    CriticConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RLConfig,
    RolloutConfig,
    TrainConfig,
)
from megarlhf.data.records import Prompt, Sample
from megarlhf.engine.actor_worker import ActorWorker
from megarlhf.engine.critic_worker import CriticWorker
from megarlhf.parallel.groups import make_groups
from megarlhf.trainer.experience import CreditAssignment, as_sequences
from megarlhf.trainer.trained_models import TrainedModels
from tests.models.tiny import write_llama
from tests.trainer.launched_group import LaunchedGroup

ROLLOUTS, LONGEST = 10, 12
TOLERANCE = 1e-5
LAYOUTS = {
    "tp2": (2, {"tensor": 2}),
    "pp2": (2, {"pipeline": 2}),
    "cp2": (2, {"context": 2}),
    "dp2": (2, {}),
}


def rollouts():
    """Of four prompts with two samples each: random tokens, log-probabilities and rewards."""
    draw = random.Random(0)
    for _ in range(ROLLOUTS):
        yield [
            [_sample(draw, Prompt(i, "", tuple(draw.choices(range(3, 100), k=5)))) for _ in "ab"]
            for i in range(4)
        ]


def _sample(draw, prompt):
    length = draw.randint(2, LONGEST)
    ids, logprobs = draw.choices(range(3, 100), k=length), [-4.6] * length
    return Sample(prompt, ids, logprobs, 0, "stop", "", reward=draw.random())


def configure(path, world, parallel):
    layout = ParallelConfig(**parallel)
    # With the usual eps of 1e-8 Adam turns the rounding of a gradient near zero into a whole step.
    optimizer = OptimizerConfig(lr=1e-3, eps=1e-5)
    return RLConfig(
        model=ModelConfig(path=str(path), dtype="float32", parallel=layout),
        optimizer=optimizer,
        critic=CriticConfig(parallel=layout, optimizer=optimizer),
        algorithm=registry.filled(AlgorithmConfig(name="ppo", updates_per_rollout=2)),
        rollout=RolloutConfig(max_new_tokens=LONGEST),
        cluster=ClusterConfig(actor_ranks=world),
        train=TrainConfig(micro_batch_tokens=48),
    )


def train(rank, world, path, parallel):
    """Metrics and advantages of every rollout; the real models and losses, no engine."""
    config = configure(path, world, parallel)
    algorithm = registry.find("ppo", None)
    actor, critic = (worker(config, rank, world, 1) for worker in (ActorWorker, CriticWorker))
    groups = make_groups(actor.topology, seed=1)
    for worker in (actor, critic):
        worker.start_with(groups)
    models = TrainedModels(config, algorithm, ROLLOUTS, LaunchedGroup(actor), LaunchedGroup(critic))
    credit = CreditAssignment(algorithm, config.algorithm, LONGEST)
    found = []
    for number, sampled in enumerate(rollouts()):
        sequences = as_sequences(sampled)
        models.add_predictions(sequences)
        credit.assign(sampled, sequences)
        metrics = models.update(sequences, number, credit.kl.value)
        found.append((metrics, [sequence.fields["advantages"] for sequence in sequences]))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def one_rank(ranks, model):
    return ranks.run(1, train, model, {})[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_actor_and_critic_alike(ranks, model, one_rank, layout):
    world, parallel = LAYOUTS[layout]
    for found in ranks.run(world, train, model, parallel):
        for (metrics, advantages), (expected, theirs) in zip(found, one_rank, strict=True):
            assert metrics == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
            for ours, whole in zip(advantages, theirs, strict=True):
                assert ours == pytest.approx(whole, abs=TOLERANCE)
