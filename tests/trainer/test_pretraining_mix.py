"""ptx: the gradient of a mixed batch is the sum of the two losses' own, whatever the layout.

Float64 models, so that nothing hides in rounding; the bounds are a few hundred of its roundings.
"""

import random

import pytest
import torch

from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.pretraining_mix import PretrainingMix, mixed
from megarlhf.algo.registry import filled, find
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import AlgorithmConfig, ModelConfig, OptimizerConfig, ParallelConfig
from megarlhf.data.records import Sequence
from megarlhf.engine.double import DoubleEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.context import sequence_sums
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology
from tests.models.tiny import write_llama

COEF, TEMPERATURE, LONGEST = 0.3, 0.7, 20
LAYOUTS = {
    "tp1": (1, {}),
    "cp2": (2, {"context": 2}),
    "dp2": (2, {}),
    "tp2.pp2.sp": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
}
FIELDS = ("advantages", "rollout_logprobs", "old_logprobs", "reference_logprobs")


def draw(count, seed, *names):
    """Ragged sequences of random tokens, the last half of each trained on."""
    source = random.Random(seed)
    sequences = []
    for _ in range(count):
        length = source.randint(3, LONGEST)
        unseen = length // 2 + 1
        trained = [0.0] * unseen + [1.0] * (length - unseen)
        fields = {name: [source.uniform(-5, 0) for _ in range(length)] for name in names}
        if names:
            fields["loss_weight"] = [one / (length - unseen) for one in trained]
        sequences.append(Sequence(source.choices(range(100), k=length), trained, fields))
    return sequences


ROLLOUT, ROWS = draw(6, 1, *FIELDS), draw(4, 2)


def policy(name):
    config = filled(AlgorithmConfig(name=name, kl_coef=0.1, kl_in="loss", entropy_coef=0.01))
    return PolicyLoss(find(name, None), config, TEMPERATURE, LONGEST, sequence_sums)


def gradients(rank, world, path, parallel, names):
    """Of mixed batches, and of their two parts in batches of their own; and the metrics of ptx."""
    config = ModelConfig(path=str(path), dtype="float64", parallel=ParallelConfig(**parallel))
    topology = Topology.of(config.parallel, world)
    engine = DoubleEngine(
        ModelSpec.read(path),
        config,
        topology,
        make_groups(topology, seed=1),
        rank,
        micro_batch_tokens=48,
        optimizer=OptimizerConfig(),
    )

    def step(sequences, loss):
        metrics = engine.train_step(sequences, loss, lr=0.0)
        own = [p.main_grad.clone() for chunk in engine.chunks for p in chunk.parameters()]
        return metrics, own

    found = []
    rows, of_rows = step(ROWS, NegativeLogLikelihood())
    for name in names:
        batch = mixed(ROLLOUT, ROWS)
        metrics, together = step(batch, PretrainingMix.of(policy(name), COEF, batch))
        alone, of_rollout = step(ROLLOUT, policy(name))
        worst = max(
            (a - (b + COEF * c)).abs().max().item()
            for a, b, c in zip(together, of_rollout, of_rows, strict=True)
        )
        largest = max(gradient.abs().max().item() for gradient in together)
        least = min(max(g.abs().max().item() for g in part) for part in (of_rollout, of_rows))
        found.append((metrics, alone, rows["loss"], worst / largest, least))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_the_sum(ranks, tmp_path, layout):
    world, parallel = LAYOUTS[layout]
    path = write_llama(tmp_path)
    for found in ranks.run(world, gradients, path, parallel, ["grpo", "gspo", "dr_grpo"]):
        for metrics, alone, nll, worst, least in found:
            assert least > 1e-3  # neither part is nothing
            assert worst < 1e-13
            assert metrics["ptx_loss"] == pytest.approx(nll, rel=1e-12)
            assert metrics["loss"] == pytest.approx(alone["loss"] + COEF * nll, rel=1e-12)
            for name in ("policy_loss", "kl", "entropy"):
                assert metrics[name] == pytest.approx(alone[name], rel=1e-12)
            # Measured in fp32. Seen: 5e-8.
            assert metrics["logprob_gap"] == pytest.approx(alone["logprob_gap"], rel=5e-7)


def test_an_impossible_token_of_a_row_does_not_reach_the_policy():
    """exp(-log p) of it is infinite, and infinity times a mask of 0 is no number."""
    from megarlhf.data.packing import collate

    batch = collate(mixed(ROLLOUT, ROWS), range(len(ROLLOUT) + len(ROWS)))
    logprobs = torch.full(batch.targets.shape, -1.0)
    logprobs[batch.fields["ptx_row"] > 0] = -1000.0
    logprobs.requires_grad_()
    loss = PretrainingMix.of(policy("grpo"), COEF, mixed(ROLLOUT, ROWS))
    total, _ = loss(logprobs, torch.ones_like(logprobs), batch)
    total.backward()
    assert total.isfinite() and logprobs.grad.isfinite().all()
