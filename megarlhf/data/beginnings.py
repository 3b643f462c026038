"""Beginnings that sequences have in common, such as the prompt of several samples. Pure functions.

A pack holds such a beginning once. Each of its sequences goes on from it with the last token that
nothing is trained on, whose prediction is the first one of its own.
"""

import itertools
from collections import abc
from typing import NamedTuple

from megarlhf.data.records import Sequence


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
    """What others may share: the tokens before the last one that comes before any training."""
    trained = next((at for at, mask in enumerate(sequence.loss_mask) if mask), 0)
    return tuple(sequence.token_ids[: max(0, trained - 1)])


def pieces_of(
    sequences: abc.Sequence[Sequence], indices: abc.Sequence[int], *, share: bool
) -> list[Piece]:
    """What a pack holds: shared beginnings, and the sequences or the rest of them, equal ones together.

    Args:
        sequences: All sequences of the batch.
        indices: Those to pack.
        share: Whether to look for beginnings; without it sequences are whole, the longest first.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for index in indices if share else ():
        members.setdefault(beginning_of(sequences[index]), []).append(index)
    common = [ids for ids, own in members.items() if ids and len(own) > 1]
    common.sort(key=len, reverse=True)
    shared = [Piece(members[ids][0], 0, len(ids), is_shared=True) for ids in common]
    behind = {index: number for number, ids in enumerate(common) for index in members[ids]}
    rest = []
    for index in indices:
        number = behind.get(index, -1)
        begin = shared[number].end if number >= 0 else 0
        rest.append(Piece(index, begin, len(sequences[index].token_ids), number))
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
    sequences: abc.Sequence[Sequence], *, max_tokens: int, multiple: int, pad_to_multiple: int = 1
) -> list[Group]:
    """Which sequences to put into one micro-batch, so that they share their beginning there.

    Args:
        sequences: The whole batch.
        max_tokens: What a micro-batch holds.
        multiple: Those of one beginning are divided until all have room and the number of groups is
            a multiple of this; where nothing else will do, each sequence is a group.
        pad_to_multiple: See `packing.collate`.
    """

    def padded(length: int) -> int:
        return -(-length // pad_to_multiple) * pad_to_multiple

    members: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        members.setdefault(beginning_of(sequence), []).append(index)
    alone = [Group((i,), padded(len(sequences[i].token_ids))) for i in members.pop((), [])]

    def group(shared: int, own: tuple[int, ...]) -> Group:
        if len(own) == 1:
            shared = 0
        rest = sum(padded(len(sequences[index].token_ids) - shared) for index in own)
        return Group(own, padded(shared) + rest)

    for parts in range(1, max(map(len, members.values()), default=0) + 1):
        groups = [
            group(len(ids), part) for ids, own in members.items() for part in _divided(own, parts)
        ]
        fits = all(len(one.members) == 1 or one.tokens <= max_tokens for one in groups)
        if fits and (len(groups) + len(alone)) % multiple == 0:
            return groups + alone
    return [*groups, *alone] if members else alone


def _divided(items: list[int], parts: int) -> list[tuple[int, ...]]:
    """Into as many runs of nearly one size, or fewer."""
    parts = min(parts, len(items))
    cuts = [len(items) * number // parts for number in range(parts + 1)]
    return [tuple(items[a:b]) for a, b in itertools.pairwise(cuts)]
