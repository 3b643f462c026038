"""Divergences between a student's and a teacher's next-token distribution, term by term."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Divergence(NamedTuple):
    """A divergence between a student's distribution p and a teacher's q, as a sum over the vocabulary.

    Attributes:
        terms: From log p and log q, of one shape, and a weight in (0, 1) to the terms.
        slopes: Likewise, to the derivatives of the terms by log p.
    """

    terms: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    slopes: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def _log_mixture(log_p: torch.Tensor, log_q: torch.Tensor, weight: float) -> torch.Tensor:
    shares = torch.tensor([1 - weight, weight], dtype=torch.float64).log().tolist()
    return torch.logaddexp(log_p + shares[0], log_q + shares[1])


def _js_terms(log_p: torch.Tensor, log_q: torch.Tensor, weight: float) -> torch.Tensor:
    middle = _log_mixture(log_p, log_q, weight)
    from_teacher = weight * log_q.exp() * (log_q - middle)
    return from_teacher + (1 - weight) * log_p.exp() * (log_p - middle)


def _js_slopes(log_p: torch.Tensor, log_q: torch.Tensor, weight: float) -> torch.Tensor:
    return (1 - weight) * log_p.exp() * (log_p - _log_mixture(log_p, log_q, weight))


# forward: KL(q || p), Hinton et al. 2015, arXiv:1503.02531. reverse: KL(p || q), Gu et al. 2023,
# arXiv:2306.08543. js: w KL(q || m) + (1 - w) KL(p || m), m = w q + (1 - w) p, Agarwal et al. 2023,
# arXiv:2306.13649, eq. 1.
DIVERGENCES = {
    "forward": Divergence(
        lambda log_p, log_q, weight: log_q.exp() * (log_q - log_p),
        lambda log_p, log_q, weight: -log_q.exp(),
    ),
    "reverse": Divergence(
        lambda log_p, log_q, weight: log_p.exp() * (log_p - log_q),
        lambda log_p, log_q, weight: log_p.exp() * (log_p - log_q + 1),
    ),
    "js": Divergence(_js_terms, _js_slopes),
}
