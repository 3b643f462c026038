"""Soft caps and windows against attention with whole matrices of scores, on one rank and on rings.

Seen, as for `test_ring_attention.py`: 1.5e-15 at most.
"""

import pytest
import torch

from megarlhf.parallel import scored_attention
from megarlhf.parallel.packed_attention import packed_attention
from megarlhf.parallel.scored_attention import ScoredBlock, Scoring
from tests.parallel import jobs
from tests.parallel.attention import LENGTHS, SCALE, assert_close, draw, plain, whole

SCORINGS = [
    Scoring(cap=2.0),
    Scoring(window=5),
    Scoring(cap=1.5, window=6),
    Scoring(window=2),
    Scoring(window=16),  # some sequences are longer, some are not
]


@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
def test_one_rank(scoring, monkeypatch):
    monkeypatch.setattr(scored_attention, "ROWS", 7)  # several parts a sequence
    tensors = draw()
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    out = packed_attention(*leaves, LENGTHS, scale=SCALE, scoring=scoring)
    found = [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]
    assert_close(found, plain(*tensors, scoring))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
def test_ring(ranks, scoring, size):
    tensors = draw()
    shares = ranks.run(size, jobs.ring_attention, tensors, LENGTHS, SCALE, scoring)
    assert_close(whole(shares, tensors), plain(*tensors, scoring))


def test_a_window_that_no_sequence_exceeds_is_left_to_the_flash_kernel():
    assert not Scoring(window=40).matters(40)
    assert Scoring(window=40).matters(41)
    assert Scoring(cap=50.0).matters(1)
    assert not Scoring().matters(10**6)


def test_scores_are_those_of_the_window_only():
    places = torch.arange(10_000)
    block = ScoredBlock(Scoring(window=100), 1.0, places, places)
    assert max(seen.stop - seen.start for _, seen in block._parts()) == scored_attention.ROWS + 99
