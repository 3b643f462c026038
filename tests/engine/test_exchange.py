"""Rows between two layouts: every holder of the target gets every token and column, once."""

import random

import pytest
import torch

from megarlhf.data.dealing import partition
from megarlhf.data.packing import padded_length
from megarlhf.engine.exchange import Side, exchange, plan
from megarlhf.parallel.topology import Topology

COLUMNS = 11
LENGTHS = [random.Random(7).randint(2, 30) for _ in range(8)]


def side(**sizes):
    topology = Topology(4, **sizes)
    multiple = 2 * topology.cp if topology.cp > 1 else 1
    padded = [padded_length(length, multiple) for length in LENGTHS]
    shares = partition(padded, dp_size=topology.dp, max_tokens=64)
    width = -(-COLUMNS // topology.tp)
    columns = [(min(COLUMNS, r * width), min(COLUMNS, (r + 1) * width)) for r in range(topology.tp)]
    of_ranks = [frozenset(i for packed in share for i in packed) for share in shares]
    return Side(topology, of_ranks, multiple, columns)


SIDES = {
    "tp4": {"tp": 4},
    "tp2.pp2": {"tp": 2, "pp": 2},
    "cp2.tp2": {"cp": 2, "tp": 2},
    "cp4": {"cp": 4},
    "dp4": {},
}


@pytest.mark.parametrize("source", SIDES)
@pytest.mark.parametrize("target", SIDES)
def test_the_plan_covers_what_is_needed_once(source, target):
    ours, theirs = side(**SIDES[source]), side(**SIDES[target])
    covered = {}
    for rectangle in plan(ours, theirs, LENGTHS):
        for token in rectangle.tokens:
            for column in range(*rectangle.columns):
                key = rectangle.receiver, rectangle.index, token, column
                covered[key] = covered.get(key, 0) + 1
    needed = {
        (rank, index, token, column)
        for index, length in enumerate(LENGTHS)
        for rank in theirs.holders(index)
        for token in theirs.positions(rank, length)
        if token < length
        for column in range(*theirs.columns_of(rank))
    }
    assert covered == dict.fromkeys(needed, 1)


def cell(index, token, column):
    return float(10000 * index + 100 * token + column)


def rows_of(part, rank):
    first, last = part.columns_of(rank)
    return {
        index: torch.tensor(
            [
                [cell(index, t, c) if t < length else 0.0 for c in range(first, last)]
                for t in part.positions(rank, length)
            ],
            dtype=torch.float64,
        )
        for index, length in enumerate(LENGTHS)
        if rank in part.holders(index)
    }


def exchanged(rank, world):
    source, target = side(**SIDES["cp2.tp2"]), side(**SIDES["dp4"])
    back = {}
    for one, other in ((source, target), (target, source)):
        ends = {"rank": rank, "dtype": torch.float64, "device": torch.device("cpu")}
        got = exchange(rows_of(one, rank), one, other, LENGTHS, **ends)
        expected = rows_of(other, rank)
        assert got.keys() == expected.keys()
        back |= {index: torch.equal(rows, expected[index]) for index, rows in got.items()}
    return all(back.values())


def test_ranks_get_their_rows(ranks):
    assert all(ranks.run(4, exchanged))
