"""Groups are dealt whole, and batches of any size are filled up with what is not trained on."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarlhf.data.dealing import filled, partition
from megarlhf.data.records import Sequence
from tests.data.test_packing import check


@st.composite
def grouped(draw):
    """Lengths, groups that `partition` can always deal, and its other arguments."""
    dp_size, multiple_of = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    count = dp_size * multiple_of * draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(1, 50), min_size=sum(sizes), max_size=sum(sizes)))
    places = list(range(len(lengths)))
    random.Random(draw(st.integers(0, 99))).shuffle(places)
    groups = [tuple(places.pop() for _ in range(size)) for size in sizes]
    return lengths, groups, dp_size, draw(st.integers(1, 200)), multiple_of


@settings(max_examples=150, deadline=None)
@given(grouped())
def test_groups_stay_together_and_all_else_holds_for_them(arguments):
    lengths, groups, dp_size, max_tokens, multiple_of = arguments
    options = {"dp_size": dp_size, "max_tokens": max_tokens, "multiple_of": multiple_of}
    dealt = partition(lengths, groups=groups, **options)
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    by_group = []
    for rank in dealt:
        by_group.append([])
        for packed in rank:
            numbers = list(dict.fromkeys(group_of[index] for index in packed))
            assert sorted(packed) == sorted(i for number in numbers for i in groups[number])
            by_group[-1].append(numbers)
    check(by_group, [sum(lengths[i] for i in group) for group in groups], **options)


def test_groups_that_miss_a_sequence():
    for groups in ([(0, 1)], [(0, 1), (1, 2)]):
        with pytest.raises(ValueError, match="do not hold each of the 3 sequences once"):
            partition([4, 4, 4], dp_size=1, max_tokens=9, groups=groups)
    with pytest.raises(ValueError, match="1 groups of sequences are too few"):
        partition([4, 4], dp_size=2, max_tokens=9, groups=[(0, 1)])


def test_filling_up():
    sequences = [
        Sequence([1] * length, [0.0] + [1.0] * (length - 1), {}, {"label": float(length)})
        for length in (5, 4, 2, 3, 9, 9)
    ]
    longer, groups = filled(sequences, [(0, 1), (2, 3), (4, 5)], 4)
    assert longer[:6] == sequences
    assert groups == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [(len(s.token_ids), s.values["label"]) for s in longer[6:]] == [(2, 2.0), (3, 3.0)]
    assert not any(any(s.loss_mask) for s in longer[6:])
    assert filled(sequences, None, 3) == (sequences, [(index,) for index in range(6)])
