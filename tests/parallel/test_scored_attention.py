"""Soft caps and windows against attention with the whole matrix of scores, on one rank and on rings.

Worst seen, fp64: 2.7e-15.
"""

import pytest
import torch

from megarlhf.parallel import scored_attention
from megarlhf.parallel.ring_attention import packed_attention
from megarlhf.parallel.scored_attention import Scoring
from tests.parallel import jobs

SCORINGS = [
    Scoring(cap=2.0),
    Scoring(window=5),
    Scoring(cap=1.5, window=6),
    Scoring(window=1),
    Scoring(window=40),  # as long as the longest
]
LENGTHS = (16, 24, 24, 8, 40)


def heads(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (sum(LENGTHS), count, 8) for count in (4, 2, 2, 4)
    ]  # the last: gradient of the result
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def by_whole_matrix(query, key, value, grad, scoring, lengths=LENGTHS):
    """The result and the gradients of query, key and value."""
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    results = []
    for q, k, v in zip(*(leaf.split(lengths) for leaf in leaves), strict=True):
        shared = q.shape[1] // k.shape[1]
        k, v = (tensor.repeat_interleave(shared, 1) for tensor in (k, v))
        scores = torch.einsum("qnd,knd->nqk", q, k) * 0.4
        if scoring.cap is not None:
            scores = scoring.cap * torch.tanh(scores / scoring.cap)
        places = torch.arange(len(q))
        behind = places[:, None] - places
        seen = behind >= 0
        if scoring.window is not None:
            seen &= behind < scoring.window
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        results.append(torch.einsum("nqk,knd->qnd", weights, v))
    result = torch.cat(results)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


@pytest.mark.parametrize("scoring", SCORINGS, ids=str)
def test_one_rank(scoring, monkeypatch):
    monkeypatch.setattr(scored_attention, "ROWS", 7)  # several parts a sequence
    *inputs, grad = heads()
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    result = packed_attention(*leaves, LENGTHS, scale=0.4, scoring=scoring)
    found = [result.detach(), *torch.autograd.grad(result, leaves, grad)]
    for ours, theirs in zip(found, by_whole_matrix(*inputs, grad, scoring), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [2, 4])
def test_ring(ranks, size):
    *inputs, grad = heads()
    parts = ranks.run(size, jobs.attention_on_a_ring, inputs, grad, LENGTHS, SCORINGS)
    for index, scoring in enumerate(SCORINGS):
        expected = by_whole_matrix(*inputs, grad, scoring)
        for part in parts:
            for ours, theirs in zip(part[index][1:], expected, strict=True):
                torch.testing.assert_close(ours, theirs[part[index][0]], rtol=0, atol=1e-13)


def test_a_window_that_no_sequence_exceeds_is_left_to_the_flash_kernel():
    assert not Scoring(window=40).matters(40)
    assert Scoring(window=40).matters(41)
    assert Scoring(cap=50.0).matters(1)
    assert not Scoring().matters(10**6)


def test_memory_and_time_grow_with_the_window():
    block = scored_attention.ScoredBlock(
        Scoring(window=100), 1.0, torch.arange(10_000), torch.arange(10_000)
    )
    assert max(seen.stop - seen.start for _, seen in block._parts()) == scored_attention.ROWS + 99
