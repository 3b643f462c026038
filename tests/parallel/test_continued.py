"""Sequences that go on from a shared beginning against whole ones, in fp64.

Seen on CPU: 1e-15 at most, relative to the largest value, as for the ring.
"""

import pytest
import torch

from megarlhf.parallel.continued import continued_runs
from megarlhf.parallel.packed_attention import packed_attention
from megarlhf.parallel.scored_attention import Scoring
from tests.parallel.attention import GROUPS, HEADS, NEITHER, SCALE, SIZE, assert_close, plain

BEGINNINGS = (7, 4, 4, 4)
OWN = ((5, 0), (5, 0), (2, 0), (5, 1), (3, 1), (6, 2), (2, 3))  # length, and which goes before
ALONE = 6
LENGTHS = (*BEGINNINGS, *(length for length, _ in OWN), ALONE)
STARTS = (0, 0, 0, 0, *(BEGINNINGS[before] for _, before in OWN), 0)
BEHIND = (-1, -1, -1, -1, *(before for _, before in OWN), -1)


@pytest.mark.parametrize(
    "scoring", [NEITHER, Scoring(cap=2.0), Scoring(window=4), Scoring(cap=1.5, window=9)], ids=str
)
def test_it_is_the_attention_of_whole_sequences(scoring):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    packed = [
        torch.randn(tokens, heads, SIZE, dtype=torch.float64, generator=generator)
        for heads in (HEADS, GROUPS, GROUPS, HEADS)  # query, key, value, upstream
    ]
    rows = torch.arange(tokens).split(LENGTHS)
    whole = [
        rows[number] if before < 0 else torch.cat((rows[before], rows[number]))
        for number, before in enumerate(BEHIND)
    ]
    spread = [tensor[torch.cat(whole)] for tensor in packed]
    lengths = [len(part) for part in whole]
    # What comes from above to a beginning counts once, in the packed row of its own.
    for number, part in enumerate(spread[3].split(lengths)):
        part[: STARTS[number]] = 0
    expected = plain(*spread, scoring=scoring, lengths=lengths)
    sums = [
        torch.zeros_like(tensor).index_add(0, torch.cat(whole), grad)
        for tensor, grad in zip(packed, expected[1:], strict=False)
    ]
    own = torch.cat([part[STARTS[n] :] for n, part in enumerate(expected[0].split(lengths))])

    leaves = [tensor.clone().requires_grad_() for tensor in packed[:3]]
    continued = continued_runs(LENGTHS, STARTS, BEHIND, torch.device("cpu"))
    # Of the three of 4 tokens one has 8 queries, one 6, which are filled up, and one too few for that.
    assert [run.queries.shape for run in continued] == [(2, 8), (1, 2), (1, 12)]
    out = packed_attention(*leaves, LENGTHS, scale=SCALE, scoring=scoring, continued=continued)
    found = [out.detach(), *torch.autograd.grad(out, leaves, packed[3])]
    assert_close(found, [own, *sums])
