"""Losses whose terms are of whole sequences, where two ranks share each of them."""

from dataclasses import replace

import pytest
import torch

from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.registry import filled, find
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.config.schema import AlgorithmConfig
from tests.algo.jobs import sum_of_losses
from tests.algo.packed import MAX_TOKENS, draw_sequences, pack, sequence_sums

LENGTHS = (12, 8, 8, 4)  # multiples of twice the ranks


def policy(name, config):
    return PolicyLoss(find(name), config, 1.0, MAX_TOKENS, sequence_sums)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "ppo"])
def test_two_ranks_give_the_sum_and_the_gradients_of_one(ranks, name):
    config = filled(AlgorithmConfig(name=name, kl_coef=0.5, correction="sequence_mask"))
    config = replace(config, correction_low=0.9, correction_high=1.1)
    loss = ValueLoss(config, MAX_TOKENS) if name == "ppo" else policy(name, config)
    values, entropy, batch = pack(draw_sequences(LENGTHS), config)
    batch.token_ids = torch.arange(sum(LENGTHS))
    total, metrics = loss(values, entropy, batch)
    total.backward()
    parts = ranks.run(2, sum_of_losses, loss, values.detach(), entropy, batch)
    assert sum(part[0] for part in parts) == pytest.approx(total.item(), rel=1e-12)
    for key, value in metrics.items():
        assert sum(part[1][key] for part in parts) == pytest.approx(value.item(), rel=1e-12)
    gradient = torch.empty_like(values)
    for _, _, places, own in parts:
        gradient[places] = own
    torch.testing.assert_close(gradient, values.grad, rtol=1e-12, atol=1e-15)
