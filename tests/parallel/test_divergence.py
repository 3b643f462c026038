"""Divergences from a teacher against dense fp64 formulas, on one rank and with the vocabulary cut."""

import pytest
import torch

from megarlhf.algo.divergences import DIVERGENCES
from megarlhf.parallel.divergence import vocab_parallel_divergence, vocab_parallel_log_softmax
from megarlhf.parallel.logprobs import vocab_parallel_logprobs
from megarlhf.parallel.top_k_divergence import top_k_divergence

TOKENS, VOCABULARY, K = 7, 13, 4
SETTINGS = {"weight": 0.3, "temperature": 1.7}


def dense(kind, student, teacher):
    """[T], from the definitions; arguments are probabilities."""

    def kl(p, q):
        return (p * (p / q).log()).sum(-1)

    weight = SETTINGS["weight"]
    mixture = weight * teacher + (1 - weight) * student
    return {
        "forward": lambda: kl(teacher, student),
        "reverse": lambda: kl(student, teacher),
        "js": lambda: weight * kl(teacher, mixture) + (1 - weight) * kl(student, mixture),
    }[kind]()


def draw():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, TOKENS, VOCABULARY, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    grad = torch.randn(TOKENS, generator=generator, dtype=torch.float64)
    return 2 * student, 2 * teacher, targets, grad


def found(rank, world, kind, k):
    """This rank's result and its columns of the gradient."""
    import torch.distributed as dist

    group = dist.group.WORLD if world > 1 else None
    student, teacher, targets, grad = draw()
    width = -(-VOCABULARY // world)
    padded = torch.full((2, TOKENS, width * world), 9.0, dtype=torch.float64)
    padded[0, :, :VOCABULARY], padded[1, :, :VOCABULARY] = student, teacher
    logits, of_teacher = padded[:, :, rank * width : (rank + 1) * width].clone()
    logits.requires_grad_()
    common = {"vocab_size": VOCABULARY, "group": group, "temperature": SETTINGS["temperature"]}
    says = vocab_parallel_log_softmax(of_teacher, **common)
    if k is None:
        far = vocab_parallel_divergence(
            logits, says, kind=kind, weight=SETTINGS["weight"], **common
        )
    else:
        whole = (teacher / SETTINGS["temperature"]).log_softmax(-1)
        best, ids = whole.topk(k, dim=-1)
        logprobs, _ = vocab_parallel_logprobs(logits, targets, **common)
        del common["vocab_size"]
        far = top_k_divergence(
            logits, logprobs, targets, best, ids, kind=kind, weight=SETTINGS["weight"], **common
        )
    far.backward(grad)
    return far.detach(), logits.grad


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("k", [None, K])
@pytest.mark.parametrize("world", [1, 2])
def test_against_the_definition(ranks, kind, k, world):
    student, teacher, _, grad = draw()
    student.requires_grad_()
    p, q = ((x / SETTINGS["temperature"]).softmax(-1) for x in (student, teacher))
    if k is not None:
        best = q.topk(k, dim=-1).indices
        p, q = (
            torch.cat([x.gather(1, best), 1 - x.gather(1, best).sum(-1, keepdim=True)], -1)
            for x in (p, q)
        )
    expected = dense(kind, p, q)
    expected.backward(grad)
    parts = [found(0, 1, kind, k)] if world == 1 else ranks.run(world, found, kind, k)
    for far, _ in parts:
        torch.testing.assert_close(far, expected.detach(), rtol=1e-11, atol=1e-13)
    gradient = torch.cat([part for _, part in parts], dim=1)
    assert not gradient[:, VOCABULARY:].any()  # padding
    torch.testing.assert_close(gradient[:, :VOCABULARY], student.grad, rtol=1e-10, atol=1e-12)


def test_the_best_tokens_give_no_more_than_the_whole():
    for kind in DIVERGENCES:
        assert (found(0, 1, kind, K)[0] <= found(0, 1, kind, None)[0]).all()
