"""Products of experts, computed together."""

import pytest
import torch

from megarlhf.models.lora.grouped import grouped_product


def gradients(tokens, ends, device="cpu", dtype=torch.float32):
    """Of [3, 8, 16] matrices and [tokens, 16] inputs; and the product."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, generator=generator) for shape in ((3, 8, 16), (tokens, 16)))
    matrices, inputs = (tensor.to(device, dtype).requires_grad_() for tensor in drawn)
    ends = torch.tensor(ends, dtype=torch.int32, device=device)
    product = grouped_product(inputs, matrices, ends)
    product.sum().backward()
    return [product.detach(), matrices.grad, inputs.grad]


def test_a_rank_whose_experts_get_no_token_has_gradients_of_zero():
    product, of_matrices, of_inputs = gradients(0, [0, 0, 0])
    assert product.shape == (0, 8) and of_inputs.shape == (0, 16)
    assert of_matrices.shape == (3, 8, 16) and not of_matrices.any()


@pytest.mark.gpu
@pytest.mark.parametrize("ends", [[5, 9, 20], [0, 20, 20], [0, 0, 0]], ids=str)
def test_gpu_kernels_multiply_as_the_cpu_s(ends):
    expected = gradients(ends[-1], ends)
    found = gradients(ends[-1], ends, "cuda", torch.bfloat16)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.float().cpu(), theirs, rtol=2e-2, atol=5e-2)
