import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarlhf.data.dealing import partition
from megarlhf.data.packing import collate, padded_length, scatter
from megarlhf.data.records import Sequence


@st.composite
def partitions(draw):
    """Arguments for `partition` that it can always satisfy."""
    dp_size = draw(st.integers(1, 6))
    multiple_of = draw(st.integers(1, 3))
    count = dp_size * multiple_of * draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    return lengths, dp_size, draw(st.integers(1, 200)), multiple_of


def check(result, lengths, dp_size, max_tokens, multiple_of):
    assert len(result) == dp_size
    packed = [micro_batch for rank in result for micro_batch in rank]
    assert sorted(i for micro_batch in packed for i in micro_batch) == list(range(len(lengths)))
    assert all(packed)
    (count,) = {len(rank) for rank in result}
    assert count >= 1 and count % multiple_of == 0
    tokens = [sum(lengths[index] for index in micro_batch) for micro_batch in packed]
    for micro_batch, size in zip(packed, tokens, strict=True):
        assert size <= max_tokens or len(micro_batch) == 1
    assert max(tokens) - min(tokens) <= max(lengths)
    totals = [sum(lengths[i] for micro_batch in rank for i in micro_batch) for rank in result]
    assert max(totals) - min(totals) <= max(lengths)
    by_rank = [tokens[start : start + count] for start in range(0, len(tokens), count)]
    assert all(on_rank == sorted(on_rank, reverse=True) for on_rank in by_rank)
    rounds = list(zip(*by_rank, strict=True))
    assert max(totals) - min(totals) <= max(max(dealt) - min(dealt) for dealt in rounds)


@settings(max_examples=300, deadline=None)
@given(partitions())
def test_partition_keeps_its_promises(arguments):
    lengths, dp_size, max_tokens, multiple_of = arguments
    arguments = {"dp_size": dp_size, "max_tokens": max_tokens, "multiple_of": multiple_of}
    result = partition(lengths, **arguments)
    check(result, lengths, **arguments)
    assert result == partition(list(lengths), **arguments)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(1, 200),
    st.integers(1, 3),
)
def test_partition_keeps_its_promises_or_refuses(lengths, dp_size, max_tokens, multiple_of):
    arguments = {"dp_size": dp_size, "max_tokens": max_tokens, "multiple_of": multiple_of}
    try:
        result = partition(lengths, **arguments)
    except ValueError as error:
        assert len(lengths) % (dp_size * multiple_of) != 0
        assert str(len(lengths)) in str(error)
    else:
        check(result, lengths, **arguments)


def test_partition_uses_few_micro_batches():
    assert partition([4, 3, 2, 1], dp_size=1, max_tokens=10) == [[[0, 1, 2, 3]]]
    assert partition([4, 3, 2, 1], dp_size=2, max_tokens=5) == [[[0, 3]], [[1, 2]]]
    assert partition([4, 3, 2, 1], dp_size=2, max_tokens=100) == [[[0, 3]], [[1, 2]]]
    assert partition([9, 1, 1, 1], dp_size=2, max_tokens=4) == [[[0]], [[1, 2, 3]]]
    assert len(partition([4, 3, 2, 1], dp_size=1, max_tokens=100, multiple_of=4)[0]) == 4


def test_partition_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="3 sequences are too few for 4 data-parallel ranks"):
        partition([1, 1, 1], dp_size=4, max_tokens=10)
    with pytest.raises(ValueError, match="at least 4 are needed"):
        partition([1, 1, 1], dp_size=2, max_tokens=10, multiple_of=2)
    with pytest.raises(ValueError, match="3 sequences do not fit into 2 micro-batches"):
        partition([8, 8, 8], dp_size=2, max_tokens=10)
    with pytest.raises(ValueError, match="no tokens"):
        partition([1, 0], dp_size=1, max_tokens=10)


@pytest.mark.parametrize("dp_size", [1, 64])
def test_partition_is_fast(dp_size):
    rng = random.Random(0)
    lengths = [rng.randint(50, 4000) for _ in range(4096)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = partition(lengths, dp_size=dp_size, max_tokens=8192)
        seconds.append(time.perf_counter() - start)
    check(result, lengths, dp_size, 8192, 1)
    assert min(seconds) < 0.3


def test_collate_by_hand():
    sequences = [
        Sequence([1, 2], [0.0, 1.0], {"advantages": [9.0, 0.5]}),
        Sequence([3, 4, 5], [0.0, 0.0, 1.0], {"advantages": [9.0, 1.5, 2.5]}),
        Sequence([6, 7], [0.0, 1.0], {"advantages": [9.0, 3.5]}),
    ]
    packed = collate(sequences, [0, 2, 1])
    assert packed.order == (1, 0, 2)
    assert packed.lengths == (3, 2, 2)
    assert packed.token_ids.tolist() == [3, 4, 5, 1, 2, 6, 7]
    assert packed.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert packed.targets.tolist() == [4, 5, 0, 2, 0, 7, 0]
    assert packed.loss_mask.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert packed.fields["advantages"].tolist() == [1.5, 2.5, 0, 0.5, 0, 3.5, 0]
    assert {t.dtype for t in (packed.token_ids, packed.position_ids, packed.targets)} == {
        torch.int64
    }
    assert {t.dtype for t in (packed.loss_mask, *packed.fields.values())} == {torch.float32}

    padded = collate(sequences, [0, 1], pad_to_multiple=4)
    assert padded.lengths == (4, 4)
    assert padded.token_ids.tolist() == [3, 4, 5, 0, 1, 2, 0, 0]
    assert padded.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert padded.targets.tolist() == [4, 5, 0, 0, 2, 0, 0, 0]
    assert padded.loss_mask.tolist() == [0, 1, 0, 0, 1, 0, 0, 0]
    assert padded.fields["advantages"].tolist() == [1.5, 2.5, 0, 0, 0.5, 0, 0, 0]


def test_collate_refuses_sequences_that_do_not_agree():
    whole = Sequence([1, 2], [0.0, 1.0], {"a": [0.0, 1.0]})
    with pytest.raises(ValueError, match=r"sequence 1 has fields \[\], not \['a'\]"):
        collate([whole, Sequence([1, 2], [0.0, 1.0])], [0, 1])
    with pytest.raises(ValueError, match="sequence 0: a has 1 entries for 2 tokens"):
        collate([Sequence([1, 2], [0.0, 1.0], {"a": [1.0]})], [0])
    with pytest.raises(ValueError, match="sequence 0: loss_mask has 3 entries"):
        collate([Sequence([1, 2], [0.0, 1.0, 1.0])], [0])
    with pytest.raises(ValueError, match="at least one sequence"):
        collate([whole], [])


@st.composite
def sequence_lists(draw):
    lengths = draw(st.lists(st.integers(2, 9), min_size=1, max_size=12))
    floats = st.floats(-8, 8, width=32)

    def values(kind, length):
        return draw(st.lists(kind, min_size=length, max_size=length))

    return [
        Sequence(
            values(st.integers(1, 99), length),
            values(st.sampled_from([0.0, 1.0]), length),
            {"a": values(floats, length), "b": values(floats, length)},
        )
        for length in lengths
    ]


@settings(max_examples=100, deadline=None)
@given(sequence_lists(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_scatter_undoes_collate(sequences, multiple, rng):
    lengths = [len(sequence.token_ids) for sequence in sequences]
    indices = rng.sample(range(len(sequences)), rng.randint(1, len(sequences)))
    packed = collate(sequences, indices, pad_to_multiple=multiple)

    assert sorted(packed.order) == sorted(indices)
    assert packed.lengths == tuple(padded_length(lengths[i], multiple) for i in packed.order)
    assert [lengths[i] for i in packed.order] == sorted((lengths[i] for i in indices), reverse=True)
    assert len(packed.token_ids) == sum(packed.lengths)
    tensors = {"targets": packed.targets, "loss_mask": packed.loss_mask, **packed.fields}
    for name, tensor in tensors.items():
        for index, values in scatter(tensor, packed, lengths):
            sequence = sequences[index]
            aligned = {"targets": sequence.token_ids, "loss_mask": sequence.loss_mask}
            assert values == [0.0, *{**aligned, **sequence.fields}[name][1:]]
    # nothing beside the sequences' own entries
    for tensor in tensors.values():
        scattered = sum(sum(map(abs, values)) for _, values in scatter(tensor, packed, lengths))
        assert scattered == pytest.approx(tensor.double().abs().sum().item())


def test_scatter_refuses_other_shapes_and_lengths():
    packed = collate([Sequence([1, 2], [0.0, 1.0])], [0])
    with pytest.raises(ValueError, match=r"shape \[3\], the micro-batch \[2\]"):
        scatter(torch.zeros(3), packed, [2])
    with pytest.raises(ValueError, match="4 tokens but was packed with 2"):
        scatter(torch.zeros(2), packed, [4])
    assert scatter(torch.tensor([0.5, 9.0], dtype=torch.bfloat16), packed, [2]) == [(0, [0.0, 0.5])]


def test_collate_is_fast():
    sequences = [
        Sequence([1] * 30, [1.0] * 30, {name: [0.5] * 30 for name in "abc"}) for _ in range(512)
    ]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        collate(sequences, range(512))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
