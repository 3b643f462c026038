"""Which sequences of a rollout each optimizer step takes."""

import random


def minibatches(count: int, updates: int, epochs: int, seed: str) -> list[list[int]]:
    """Each epoch takes every sequence once, cut into ``updates`` equal steps.

    A single epoch goes through the rollout in its order. Several mix it anew in each, so that no two
    take the same steps; inside a step the order stays the rollout's.

    Args:
        count: Sequences of the rollout, a multiple of ``updates``.
        updates: Optimizer steps an epoch.
        epochs: Passes over the rollout.
        seed: Of the mixing.

    Returns:
        Positions in the rollout, for each of the ``updates * epochs`` steps.
    """
    size, generator = count // updates, random.Random(seed)
    steps = []
    for _ in range(epochs):
        order = list(range(count))
        if epochs > 1:
            generator.shuffle(order)
        steps += [sorted(order[begin : begin + size]) for begin in range(0, count, size)]
    return steps
