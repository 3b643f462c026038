"""`packed_attention` on a ring against plain attention, sequence by sequence, in fp64.

Seen on CPU in fp64: 1.2e-15 at most, relative to the largest value; on one rank and on rings of 2 and 4.
"""

import pytest
import torch

from megarlhf.parallel.packed_attention import packed_attention
from megarlhf.parallel.scored_attention import Scoring
from tests.parallel import jobs
from tests.parallel.attention import (
    GROUPS,
    HEADS,
    LENGTHS,
    NEITHER,
    SCALE,
    assert_close,
    draw,
    plain,
    whole,
)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, GROUPS, HEADS], ids=["mqa", "gqa", "mha"])
def test_a_ring_computes_plain_attention(ranks, size, groups):
    tensors = draw(groups=groups)
    shares = ranks.run(size, jobs.ring_attention, tensors, LENGTHS, SCALE)
    assert_close(whole(shares, tensors), plain(*tensors))


def test_a_sequence_sees_no_other():
    """Changing one sequence changes no bit of the others."""
    query, key, value, _ = draw()
    before = packed_attention(query, key, value, LENGTHS, scale=SCALE)
    changed = slice(48, 96)
    for tensor in (query, key, value):
        tensor[changed] += 1.0
    after = packed_attention(query, key, value, LENGTHS, scale=SCALE)
    same = torch.ones(len(query), dtype=torch.bool)
    same[changed] = False
    assert torch.equal(after[same], before[same])
    assert not torch.equal(after[changed], before[changed])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("scoring", [NEITHER, Scoring(cap=1.5, window=6)], ids=str)
def test_gpu_kernels_compute_plain_attention(dtype, tolerance, scoring):
    tensors = draw()
    query, key, value, upstream = (tensor.to("cuda", dtype) for tensor in tensors)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    out = packed_attention(*leaves, LENGTHS, scale=SCALE, scoring=scoring)
    out.backward(upstream)
    ours = [out.detach(), *(leaf.grad for leaf in leaves)]
    assert_close([tensor.double().cpu() for tensor in ours], plain(*tensors, scoring), tolerance)
