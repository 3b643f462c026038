"""Operations against what they stand for, written naively with whole tensors."""

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megarlhf.models.weights.operations import Cut, QueryKeyValue, Replicated, Stacked, Vocabulary

settings = hypothesis_settings(max_examples=100, deadline=None)

sizes = st.integers(1, 4)
tps = st.sampled_from([1, 2, 3, 4, 8])


@st.composite
def cases(draw):
    """An operation, shapes it takes and a tensor-parallel size that divides them."""
    tp, width = draw(tps), draw(sizes)
    kind = draw(st.sampled_from([Replicated, Cut, Vocabulary, Stacked, QueryKeyValue]))
    tail = draw(st.sampled_from([(), (width,)]))  # a bias or a weight
    if kind is Replicated:
        return Replicated(), [(draw(sizes), *tail)], tp
    if kind is Vocabulary:
        return Vocabulary(), [(draw(st.integers(1, 20)), width)], tp
    if kind is Stacked:
        rows = draw(st.lists(sizes, min_size=1, max_size=3))
        return Stacked(), [(tp * n, *tail) for n in rows], tp
    if kind is Cut:
        dim = draw(st.integers(0, 1))
        shape = [draw(sizes), draw(sizes)]
        shape[dim] *= tp
        return Cut(dim), [tuple(shape)], tp
    if draw(st.booleans()):
        groups, queries, head = tp * draw(sizes), draw(sizes), draw(sizes)
    else:  # fewer groups than ranks: a rank has part of one
        groups = draw(st.sampled_from([n for n in range(1, tp + 1) if tp % n == 0]))
        queries, head = tp // groups * draw(sizes), tp * draw(sizes)
    rows = [groups * queries * head, groups * head, groups * head]
    return QueryKeyValue(groups), [(n, *tail) for n in rows], tp


def numbered(shapes):
    """Tensors in which every element of all of them is another number from 1."""
    tensors, start = [], 1
    for shape in shapes:
        numel = torch.Size(shape).numel()
        tensors.append(torch.arange(start, start + numel).view(shape))
        start += numel
    return tensors


def split(operation, tensors, tp):
    """Every rank's parameter, put together by pieces; 0 where no piece says anything."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    locals_ = []
    for rank in range(tp):
        local = torch.zeros(operation.local_shape(shapes, tp), dtype=torch.int64)
        for piece in operation.pieces(shapes, rank, tp):
            assert piece.hf.shape == piece.local.shape
            # += so that a place that is written twice shows
            local[piece.local.slices] += tensors[piece.source][piece.hf.slices]
        locals_.append(local)
    return locals_


def naive(operation, tensors, tp):
    """The same without pieces: interleave or stack whole tensors, then cut."""
    first = tensors[0]
    if isinstance(operation, Replicated):
        return [first] * tp
    if isinstance(operation, Cut):
        return list(first.chunk(tp, dim=operation.dim))
    if isinstance(operation, Vocabulary):
        padding = first.new_zeros(-len(first) % tp, *first.shape[1:])
        return list(torch.cat([first, padding]).chunk(tp))
    if isinstance(operation, Stacked):
        return [torch.cat([t.chunk(tp)[rank] for t in tensors]) for rank in range(tp)]
    groups = operation.groups
    by_group = [t.view(groups, -1, *t.shape[1:]) for t in tensors]
    return list(torch.cat(by_group, dim=1).flatten(0, 1).chunk(tp))


@settings
@given(cases())
def test_pieces_make_the_parameter_that_interleaving_and_cutting_makes(case):
    operation, shapes, tp = case
    tensors = numbered(shapes)
    for ours, expected in zip(
        split(operation, tensors, tp), naive(operation, tensors, tp), strict=True
    ):
        assert torch.equal(ours, expected)


@settings
@given(cases())
def test_merging_what_was_split_gives_every_tensor_back(case):
    operation, shapes, tp = case
    tensors = numbered(shapes)
    merged = [torch.zeros_like(tensor) for tensor in tensors]
    for rank, local in enumerate(split(operation, tensors, tp)):
        for piece in operation.pieces(shapes, rank, tp):
            merged[piece.source][piece.hf.slices] = local[piece.local.slices]
    for back, tensor in zip(merged, tensors, strict=True):
        assert torch.equal(back, tensor)


@settings
@given(cases())
def test_pieces_cover_the_parameter_once_and_every_rank_has_its_share(case):
    operation, shapes, tp = case
    given_by = [torch.zeros(shape, dtype=torch.int64) for shape in shapes]
    padding = 0
    for rank in range(tp):
        covered = torch.zeros(operation.local_shape(shapes, tp), dtype=torch.int64)
        for piece in operation.pieces(shapes, rank, tp):
            covered[piece.local.slices] += 1
            given_by[piece.source][piece.hf.slices] += 1
        assert covered.max() <= 1
        padding += int((covered == 0).sum())
    times = tp if operation.partition_dim is None else 1
    assert all((counts == times).all() for counts in given_by)
    rows, *rest = shapes[0]
    expected = -rows % tp * torch.Size(rest).numel() if isinstance(operation, Vocabulary) else 0
    assert padding == expected


def test_a_vocabulary_smaller_than_the_ranks_leaves_some_with_padding_only():
    shapes = [(5, 3)]
    rows = [
        [(piece.hf.ranges[0], piece.local.ranges[0]) for piece in Vocabulary().pieces(shapes, r, 4)]
        for r in range(4)
    ]
    assert Vocabulary().local_shape(shapes, 4) == (2, 3)
    assert rows == [[((0, 2), (0, 2))], [((2, 4), (0, 2))], [((4, 5), (0, 1))], []]


def test_query_heads_stay_with_their_group():
    # 2 groups of 2 query heads of 1 row: local rows are q0 q1 k0 v0 | q2 q3 k1 v1
    q, k, v = torch.tensor([0, 1, 2, 3]), torch.tensor([10, 11]), torch.tensor([20, 21])
    assert split(QueryKeyValue(2), [q, k, v], 1)[0].tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert [t.tolist() for t in split(QueryKeyValue(2), [q, k, v], 2)] == [
        [0, 1, 10, 20],
        [2, 3, 11, 21],
    ]
