"""The gradient norm is that of float64, however large the tensors are."""

import pytest
import torch

from megarlhf.engine.gradient_norm import l2_norm


@pytest.mark.parametrize(
    "shapes", [[(3,)], [(700_000,), (33, 100), (1,)], [(1024,), (0,), (2048,)]]
)
def test_it_is_right_to_rounding(shapes):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator) for shape in shapes]
    found, _ = l2_norm(65536, torch.zeros(1), [tensors], False)
    expected = sum(tensor.double().square().sum() for tensor in tensors).sqrt()
    assert (found.dtype, found.shape) == (torch.float32, (1,))
    # Seen: 4e-8; torch.norm is off by 2e-5.
    assert float(found) == pytest.approx(float(expected), rel=2e-7)
