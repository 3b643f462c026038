"""`vocab_parallel_logprobs` against torch's log_softmax over whole logits in fp64."""

import pytest
import torch

from megarlhf.parallel import logprobs as module
from megarlhf.parallel.logprobs import vocab_parallel_logprobs
from tests.parallel import jobs

T, V = 13, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Tokens are worked on in several chunks, the last not full."""
    monkeypatch.setattr(module, "CHUNK_TOKENS", 5)


def draw(columns=V, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(T, columns, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, V, (T,), generator=generator)
    upstream = torch.randn(T, generator=generator, dtype=torch.float64)
    return logits.to(dtype), targets, upstream


def reference(logits, targets, upstream, temperature=1.0, entropy_upstream=None):
    """Values, entropy and gradient in fp64 from the unpadded columns; the gradient of padding is 0."""
    whole = logits.detach().double().clone().requires_grad_()
    log_p = (whole[:, :V] / temperature).log_softmax(-1)
    picked = log_p.gather(1, targets[:, None]).squeeze(1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    total = (picked * upstream).sum()
    if entropy_upstream is not None:
        total = total + (entropy * entropy_upstream).sum()
    total.backward()
    return picked.detach(), entropy.detach(), whole.grad


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("columns", [V, V + 3], ids=["exact", "padded"])
# fp64: seen below 1e-14; fp32: below 2e-6; the logits are up to 17
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
def test_one_rank_computes_log_softmax(columns, dtype, tolerance, temperature):
    logits, targets, upstream = draw(columns, dtype)
    expected = reference(logits, targets, upstream, temperature)
    logits.requires_grad_()
    values, entropy = vocab_parallel_logprobs(
        logits, targets, vocab_size=V, temperature=temperature, with_entropy=True
    )
    assert values.dtype == dtype
    values.backward(upstream.to(dtype))
    for ours, theirs in zip((values, entropy, logits.grad), expected, strict=True):
        close(ours, theirs, tolerance)
    without, nothing = vocab_parallel_logprobs(
        logits, targets, vocab_size=V, temperature=temperature
    )
    assert nothing is None
    assert torch.equal(without, values)


def test_gradcheck():
    logits, targets, _ = draw(V + 2)
    logits.requires_grad_()
    torch.autograd.gradcheck(
        lambda x: vocab_parallel_logprobs(x, targets, vocab_size=V, temperature=0.7)[0], (logits,)
    )


def test_gradcheck_with_the_entropy():
    logits, targets, _ = draw(V + 2)
    logits.requires_grad_()

    def both(x):
        return vocab_parallel_logprobs(x, targets, vocab_size=V, temperature=0.7, with_entropy=True)

    torch.autograd.gradcheck(both, (logits,))
    torch.autograd.gradcheck(lambda x: both(x)[1], (logits,))


def test_large_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[3e4, 3e4 - 1.0, -3e4]], requires_grad=True)
    values, entropy = vocab_parallel_logprobs(
        logits, torch.tensor([1]), vocab_size=3, with_entropy=True
    )
    values.backward(torch.ones(1))
    expected, expected_entropy = (
        -1.3132616875182228,
        0.5822032860947632,
    )  # log 1/(1 + e), of (p, 1-p)
    torch.testing.assert_close(values.item(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(entropy.item(), expected_entropy, rtol=1e-6, atol=0)
    assert logits.grad.isfinite().all()


def shards_of(logits, size):
    return list(logits.split(size, dim=1))


@pytest.mark.parametrize(
    ("world", "width"),
    [(2, 6), (2, 11), (3, 6)],
    ids=["padded", "second-rank-all-padding", "third-rank-all-padding"],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ranks_compute_log_softmax_together(ranks, world, width, temperature):
    logits, targets, upstream = draw(world * width)
    expected = reference(logits, targets, upstream, temperature, upstream.flip(0))
    settings = {"vocab_size": V, "temperature": temperature}
    found = ranks.run(
        world, jobs.shard_logprobs, shards_of(logits, width), targets, upstream, settings
    )
    values, entropies, gradients = zip(*found, strict=True)
    for value, entropy in zip(values, entropies, strict=True):
        assert torch.equal(value, values[0])
        assert torch.equal(entropy, entropies[0])
    close(values[0], expected[0], 1e-12)
    close(entropies[0], expected[1], 1e-12)
    close(torch.cat(gradients, dim=1), expected[2], 1e-12)


def test_bfloat16_logits_give_float32_values_and_bfloat16_gradients(ranks):
    logits, targets, upstream = draw(12, torch.bfloat16)
    expected = reference(logits, targets, upstream, entropy_upstream=upstream.flip(0))
    found = ranks.run(
        2, jobs.shard_logprobs, shards_of(logits, 6), targets, upstream.float(), {"vocab_size": V}
    )
    values, entropy, _ = found[0]
    gradient = torch.cat([gradient for _, _, gradient in found], dim=1)
    assert values.dtype == entropy.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    # The arithmetic is fp32 (seen: 1e-6); only the gradient is rounded, to 8 bits.
    close(values, expected[0], 1e-5)
    close(entropy, expected[1], 1e-5)
    torch.testing.assert_close(gradient.double(), expected[2], rtol=2**-8, atol=1e-6)


def test_no_float32_copy_of_the_logits_is_kept_for_the_backward_pass():
    logits, targets, _ = draw(V, torch.bfloat16)
    logits.requires_grad_()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vocab_parallel_logprobs(logits, targets, vocab_size=V)
    assert any(tensor.data_ptr() == logits.data_ptr() for tensor in saved)
    others = [tensor for tensor in saved if tensor.data_ptr() != logits.data_ptr()]
    assert others and all(tensor.numel() in (0, T) for tensor in others)


@pytest.mark.gpu
def test_gpu_computes_log_softmax():
    logits, targets, upstream = draw(dtype=torch.float32)
    expected = reference(logits, targets, upstream)
    leaf = logits.cuda().requires_grad_()
    logprobs, entropy = vocab_parallel_logprobs(
        leaf, targets.cuda(), vocab_size=V, group=None, with_entropy=True
    )
    logprobs.backward(upstream.float().cuda())
    for ours, theirs in zip((logprobs, entropy, leaf.grad), expected, strict=True):
        close(ours.detach().cpu(), theirs, 1e-5)
