"""Beginnings that sequences have in common, such as the prompt of several samples. Pure functions.

A pack holds such a beginning once. Each of its sequences goes on from it with the last token that
nothing is trained on, whose prediction is the first one of its own.
"""

import itertools
from collections import abc
from typing import NamedTuple

from megarlhf.data.records import Sequence

# What sharing has to save of a group's tokens: attention to a beginning is a call of its own.
WORTH = 0.1


class Piece(NamedTuple):
    """Tokens that are packed end to end.

    Attributes:
        index: Whose they are; any of those that share them.
        begin: The first one's place in the sequence,
        end: and that behind the last.
        behind: Of a sequence without its beginning: which piece that is. Otherwise -1.
        is_shared: A beginning: several sequences go on from it.
    """

    index: int
    begin: int
    end: int
    behind: int = -1
    is_shared: bool = False


def beginning_of(sequence: Sequence) -> tuple[int, ...]:
    """The tokens before the first that is trained on; what is shared is all but the last of them."""
    trained = next(itertools.compress(itertools.count(), sequence.loss_mask), 0)
    return tuple(sequence.token_ids[:trained])


def pieces_of(
    sequences: abc.Sequence[Sequence],
    indices: abc.Sequence[int],
    *,
    share: bool,
    with_last: bool = True,
) -> list[Piece]:
    """What a pack holds: shared beginnings, and the sequences or the rest of them, equal ones together.

    Args:
        sequences: All sequences of the batch.
        indices: Those to pack.
        share: Whether to look for beginnings; without it sequences are whole, the longest first.
        with_last: Whether the last token of each, which predicts nothing, is packed.
    """
    members = _by_beginning(sequences, indices if share else ())
    common = [ids for ids, own in members.items() if _saves_enough(len(ids) - 1, sequences, own)]
    common.sort(key=len, reverse=True)
    shared = [Piece(members[ids][0], 0, len(ids) - 1, is_shared=True) for ids in common]
    behind = {index: number for number, ids in enumerate(common) for index in members[ids]}
    rest = []
    for index in indices:
        number = behind.get(index, -1)
        begin = shared[number].end if number >= 0 else 0
        end = len(sequences[index].token_ids) - (not with_last)
        rest.append(Piece(index, begin, end, number))
    rest.sort(key=lambda piece: (-piece.begin, piece.begin - piece.end))
    return shared + rest


class Group(NamedTuple):
    """Sequences that are to be in one micro-batch.

    Attributes:
        members: Their positions.
        tokens: What they take up there, their beginning once.
    """

    members: tuple[int, ...]
    tokens: int


def together(
    sequences: abc.Sequence[Sequence],
    *,
    max_tokens: int,
    multiple: int,
    pad_to_multiple: int = 1,
    with_last: bool = True,
) -> list[Group]:
    """Which sequences to put into one micro-batch, so that they share their beginning there.

    Args:
        sequences: The whole batch.
        max_tokens: What a micro-batch holds.
        multiple: Those of one beginning are divided until all have room and the number of groups is
            a multiple of this; where nothing else will do, each sequence is a group.
        pad_to_multiple: See `packing.collate`.
        with_last: See `pieces_of`.
    """
    left_out = int(not with_last)

    def padded(length: int) -> int:
        return -(-length // pad_to_multiple) * pad_to_multiple

    common, alone = [], []
    for ids, own in _by_beginning(sequences, range(len(sequences))).items():
        if _saves_enough(len(ids) - 1, sequences, own):
            common.append((len(ids) - 1, own))
        else:
            alone += own

    def group(shared: int, own: tuple[int, ...]) -> Group:
        if not _saves_enough(shared, sequences, own):
            shared = 0
        rest = sum(padded(len(sequences[index].token_ids) - shared - left_out) for index in own)
        return Group(own, padded(shared) + rest)

    for parts in itertools.count(1):
        groups = [group(shared, part) for shared, own in common for part in _divided(own, parts)]
        fits = all(one.tokens <= max_tokens for one in groups if len(one.members) > 1)
        are_single = all(len(one.members) == 1 for one in groups)
        if are_single or (fits and (len(groups) + len(alone)) % multiple == 0):
            return groups + [group(0, (index,)) for index in alone]
    raise AssertionError("divided often enough, all are single")


def _by_beginning(
    sequences: abc.Sequence[Sequence], indices: abc.Iterable[int]
) -> dict[tuple[int, ...], list[int]]:
    members: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        members.setdefault(beginning_of(sequences[index]), []).append(index)
    return members


def _saves_enough(
    shared: int, sequences: abc.Sequence[Sequence], members: abc.Sequence[int]
) -> bool:
    saved = (len(members) - 1) * shared
    return saved > 0 and saved >= WORTH * sum(len(sequences[i].token_ids) for i in members)


def _divided(items: list[int], parts: int) -> list[tuple[int, ...]]:
    """Into as many runs of nearly one size, or fewer."""
    parts = min(parts, len(items))
    cuts = [len(items) * number // parts for number in range(parts + 1)]
    return [tuple(items[a:b]) for a, b in itertools.pairwise(cuts)]
