"""The loss of supervised fine-tuning."""

import math

import pytest

from megarlhf.algo.registry import filled
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import AlgorithmConfig
from tests.algo.packed import draw_sequences, pack


def test_negative_log_likelihood_sums_what_is_trained():
    logprobs, _, batch = pack(draw_sequences((9, 5)), filled(AlgorithmConfig()))
    loss, metrics = NegativeLogLikelihood()(logprobs, None, batch)
    trained = [-p for p, m in zip(logprobs.tolist(), batch.loss_mask.tolist(), strict=True) if m]
    assert loss.item() == pytest.approx(math.fsum(trained), rel=1e-12)
    assert metrics == {}
