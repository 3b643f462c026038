"""pass@k: how likely a prompt is solved by at least one of k answers."""

import math


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) from n samples, c of them correct.

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, eq. 1.

    Args:
        samples: n, of one prompt.
        correct: c, from 0 to n.
        k: From 1 to n.

    Raises:
        ValueError: A number is out of its range.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {correct} right ones in {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
