"""What some ranks found, on every rank."""

import torch

from megarlhf.data.records import Sequence
from megarlhf.engine.on_every_rank import on_every_rank

LENGTHS = (3, 1, 2)
VALUES = [[0.1, -2.5, 1e-30], [7.0], [-0.3, 0.7]]


def shared(rank, world, held):
    sequences = [Sequence([1] * length, [0.0] * length) for length in LENGTHS]
    found = {index: VALUES[index] for index in held[rank]}
    return on_every_rank(found, sequences, torch.device("cpu"))


def test_values_of_one_rank_and_of_both(ranks):
    assert ranks.run(2, shared, [(0, 2), (2, 1)]) == [VALUES, VALUES]  # both hold the last: once
