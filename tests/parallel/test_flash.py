"""One block of attention by each device's kernel.

Without a GPU its kernels are asked on tensors without contents: their arguments, shapes and dtypes are
right then, their numbers are for `pytest -m gpu`.
"""

import pytest
import torch

from megarlhf.parallel import flash

SCALE = 0.3
CASES = [(50, 50, True), (50, 33, False)]  # queries, keys; keys of another chunk are all seen


def draw(queries, keys, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, queries, 6, 16), (3, keys, 2, 16), (3, keys, 2, 16), (3, queries, 6, 16)]
    drawn = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return [tensor.to(device, dtype).transpose(1, 2) for tensor in drawn]


def run(tensors, causal):
    *heads, upstream = tensors
    out, lse = flash.block_forward(*heads, causal=causal, scale=SCALE)
    grads = flash.block_backward(
        upstream.contiguous(),
        *heads,
        out.contiguous(),
        lse.contiguous(),
        causal=causal,
        scale=SCALE,
    )
    return [out, lse, *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_the_kernels_of_gpus_take_these_arguments(queries, keys, causal, dtype):
    on_gpu = run(draw(queries, keys, dtype, "meta"), causal)
    on_cpu = run(draw(queries, keys, dtype), causal)
    described = [(found.shape, found.dtype) for found in on_gpu]
    assert described == [(found.shape, found.dtype) for found in on_cpu]


@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_explicit_scores_stand_in_for_a_kernel(queries, keys, causal):
    """As float64 on a GPU takes them. Seen: 4e-16, relative to the largest value."""
    tensors = draw(queries, keys, torch.float64)
    expected = run(tensors, causal)
    block = flash._scored(tensors[0], tensors[1], causal, SCALE)
    *heads, upstream = tensors
    out, lse = block.forward(*heads)
    for found, value in zip(
        (out, lse, *block.backward(upstream, *heads, out, lse)), expected, strict=True
    ):
        assert (found - value).abs().max() <= 1e-14 * value.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
    ids=str,
)
@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_gpu_kernels_compute_what_the_cpu_does(queries, keys, causal, dtype, tolerance):
    expected = run(draw(queries, keys, torch.float64), causal)
    for found, value in zip(run(draw(queries, keys, dtype, "cuda"), causal), expected, strict=True):
        assert (found.double().cpu() - value).abs().max() <= tolerance * value.abs().max()
