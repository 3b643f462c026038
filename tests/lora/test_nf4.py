"""The 16 values and the packing, against their definition and against bitsandbytes where it is."""

import pytest
import torch

from megarlhf.models.lora import nf4, scales


def test_the_values_are_quantiles_of_the_normal_distribution():
    """QLoRA, appendix E: 8 and 7 evenly spaced probabilities on the two sides of an exact 0."""
    last = 1 - (1 / (2 * 15) + 1 / (2 * 16)) / 2

    def side(count):
        probabilities = torch.linspace(last, 0.5, count, dtype=torch.float64)[:-1]
        return torch.special.ndtri(probabilities)

    values = torch.cat([side(9), -side(8), torch.zeros(1)]).sort().values
    expected = values / values.max()
    assert torch.tensor(nf4.CODE).double() == pytest.approx(expected.numpy(), abs=3e-7)


def test_every_element_becomes_the_nearest_value_of_its_block():
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    weight[0, :64] = 0.0
    packed, largest = nf4.quantize(weight)
    assert packed.shape == (6, 64)
    assert packed.dtype == torch.uint8
    found = nf4.dequantize(packed, largest, torch.float32)
    blocks = weight.view(6, 2, 64)
    scales = blocks.abs().amax(-1, keepdim=True)
    values = torch.tensor(nf4.CODE) * scales.unsqueeze(-1)
    nearest = (values - blocks.unsqueeze(-1)).abs().amin(-1)
    # Which of two is nearer to an element in the middle is for rounding to say: seen 6e-8.
    assert (found.view_as(blocks) - blocks).abs() == pytest.approx(nearest.numpy(), abs=2e-7)
    assert found[0, :64].eq(0).all()
    again = nf4.dequantize(*nf4.quantize(found), torch.float32)
    assert torch.equal(again, found)


def test_parts_are_quantized_as_the_whole():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    whole = nf4.dequantize(*nf4.quantize(weight), torch.float32)
    part = nf4.dequantize(*nf4.quantize(weight[2:5, 64:192]), torch.float32)
    assert torch.equal(part, whole[2:5, 64:192])


def test_scales_are_the_nearest_of_256_values_of_their_group():
    largest = torch.rand(96, 5, generator=torch.Generator().manual_seed(3)) + 1
    largest[:32, 2] = 0.0  # blocks of zeros
    largest[32:64, 3] = 0.7  # all alike
    found = scales.unpack(*scales.pack(largest))
    groups, values = (tensor.view(3, 32, 5) for tensor in (largest, found))
    means = groups.mean(1, keepdim=True)
    spreads = (groups - means).abs().amax(1, keepdim=True)
    nearest = (groups - means - spreads * scales.TABLE.view(-1, 1, 1, 1)).abs().amin(0)
    # A sum and a product are rounded: seen 1.2e-7 of scales up to 2.
    assert (values - groups).abs() == pytest.approx(nearest.numpy(), abs=4e-7)
    assert (nearest <= 0.0071 * spreads + 1e-7).all()  # half a step of the uppermost decade
    part = scales.unpack(*scales.pack(largest[32:, 1:4]))
    assert torch.equal(part, found[32:, 1:4])


def bitsandbytes():
    return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is absent")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_kernels_unpack_the_same_numbers(dtype):
    bitsandbytes()
    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(4)).cuda()
    packed = nf4.quantize(weight)
    assert torch.equal(nf4.dequantize(*packed, dtype), nf4.in_plain_torch(*packed, dtype))


def test_bitsandbytes_has_the_same_table_of_8_bits():
    theirs = bitsandbytes().create_dynamic_map()
    assert scales.TABLE.numpy() == pytest.approx(theirs.numpy(), abs=1e-7)


def test_bitsandbytes_packs_alike():
    functional = bitsandbytes()
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(2))
    theirs, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=nf4.BLOCK)
    packed, largest = nf4.quantize(weight)
    assert state.absmax == pytest.approx(largest.flatten().numpy(), abs=0)
    ours = nf4.dequantize(packed, largest, torch.float32)
    # A middle between two values may be rounded to either.
    assert (functional.dequantize_4bit(theirs, state) != ours).float().mean() < 1e-3
