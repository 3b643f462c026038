"""The critic's loss against a loop over tokens."""

import pytest
import torch

from megarlhf.algo.registry import filled
from megarlhf.algo.value_loss import ValueLoss, clipped_value_error
from megarlhf.config.schema import AlgorithmConfig
from tests.algo import loops
from tests.algo.packed import MAX_TOKENS, divided, draw_sequences, pack

LENGTHS = (9, 5, 5, 3)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_loss_is_the_loop(aggregation, clip):
    config = filled(AlgorithmConfig(name="ppo", aggregation=aggregation, value_clip=clip))
    sequences = draw_sequences(LENGTHS)
    values, _, batch = pack(sequences, config)
    total, metrics = ValueLoss(config, MAX_TOKENS)(values, None, batch)
    expected = loops.value_loss(sequences, config, MAX_TOKENS)
    assert divided(total, batch).item() == pytest.approx(expected, rel=1e-12)
    assert tuple(metrics) == ValueLoss.metric_names
    assert (metrics["value_clip_fraction"] > 0) == (clip is not None)
    mean = metrics["value_loss"] / batch.loss_mask.sum()
    config = filled(AlgorithmConfig(name="ppo", aggregation="token_mean", value_clip=clip))
    assert mean.item() == pytest.approx(loops.value_loss(sequences, config, MAX_TOKENS), rel=1e-12)


def test_gradients():
    config = filled(AlgorithmConfig(name="ppo", value_clip=0.1))
    values, _, batch = pack(draw_sequences((4, 3)), config)
    loss = ValueLoss(config, MAX_TOKENS)
    assert torch.autograd.gradcheck(lambda x: loss(x, None, batch)[0], (values,))


@pytest.mark.parametrize(
    ("value", "target", "error", "active"),
    [
        (1.0, 2.0, 0.5, False),  # not moved yet
        (1.4, 2.0, 0.32, True),  # moved beyond 0.2: counts as if at 1.2
        (0.4, 2.0, 1.28, False),  # moved away: the larger error counts
        (1.1, 2.0, 0.405, False),
    ],
)
def test_clipping_by_hand(value, target, error, active):
    def one(number):
        return torch.tensor([number], dtype=torch.float64)

    found, bound = clipped_value_error(one(value), one(1.0), one(target), 0.2)
    assert found.item() == pytest.approx(error)
    assert bound.tolist() == [active]
    plain, bound = clipped_value_error(one(value), one(1.0), one(target), None)
    assert plain.item() == pytest.approx((value - target) ** 2 / 2)
    assert bound.tolist() == [False]
