"""Attention with whole matrices of scores, for the tests of `packed_attention`."""

import torch

from megarlhf.parallel.context import zigzag_indices
from megarlhf.parallel.scored_attention import Scoring

HEADS, GROUPS, SIZE = 6, 2, 16
SCALE = 0.3
LENGTHS = (48, 48, 16, 8, 8, 8)  # multiples of 2 * 4; equal neighbours run together
TOLERANCE = 1e-14
NEITHER = Scoring()  # neither a cap nor a window


def draw(lengths=LENGTHS, groups=GROUPS):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    return [
        torch.randn(tokens, heads, SIZE, dtype=torch.float64, generator=generator)
        for heads in (HEADS, groups, groups, HEADS)  # query, key, value, upstream
    ]


def plain(query, key, value, upstream, scoring=NEITHER, lengths=LENGTHS):
    """Output and gradients by the softmax of whole score matrices."""
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    repeat = HEADS // key.shape[1]
    outputs = []
    for q, k, v in zip(*(leaf.split(lengths) for leaf in leaves), strict=True):
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = SCALE * torch.einsum("inh,jnh->nij", q, k)
        if scoring.cap is not None:
            scores = scoring.cap * torch.tanh(scores / scoring.cap)
        seen = torch.ones(len(q), len(q), dtype=torch.bool).tril()
        if scoring.window is not None:
            seen = seen.triu(1 - scoring.window)
        p = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("nij,jnh->inh", p, v))
    out = torch.cat(outputs)
    out.backward(upstream)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(ours, theirs, tolerance=TOLERANCE):
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine - expected).abs().max() <= tolerance * expected.abs().max()


def whole(shares, tensors, lengths=LENGTHS):
    """The ranks' outputs and gradients of query, key and value, put together."""
    found = [torch.empty_like(t) for t in (tensors[0], *tensors[:3])]
    for rank, share in enumerate(shares):
        mine = zigzag_indices(lengths, rank, len(shares))
        for tensor, part in zip(found, share, strict=True):
            tensor[mine] = part
    return found
