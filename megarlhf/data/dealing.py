"""Which sequences of a batch are whose, in which micro-batch. Pure functions, the same on every rank."""

import heapq
from bisect import bisect_left
from collections import abc
from collections.abc import Iterable

from megarlhf.data.records import Sequence


def partition(
    lengths: abc.Sequence[int],
    *,
    dp_size: int,
    max_tokens: int,
    multiple_of: int = 1,
    groups: abc.Sequence[abc.Sequence[int]] | None = None,
) -> list[list[list[int]]]:
    """Divide sequences into micro-batches and those over the data-parallel ranks.

    The fewest micro-batches into which the greedy rule "longest sequence first, each to the
    emptiest micro-batch" (LPT: Graham 1969, "Bounds on multiprocessing timing anomalies") fits the
    sequences. They are dealt to the ranks in rounds, largest first, and in each round the largest
    goes to the rank with the fewest tokens. The result depends on the arguments only, and

    - each sequence is in exactly one micro-batch, no micro-batch is empty, and every rank has the
      same number of them, a multiple of ``multiple_of``;
    - a micro-batch has at most ``max_tokens`` tokens, unless it is a single longer sequence;
    - any two micro-batches, of any ranks, differ by at most the longest sequence's tokens: the
      greedy rule adds to the smallest only;
    - and so do the totals of any two ranks: their spread is at most that of the micro-batches of
      one round, the one in which they differ most.

    With ``groups`` all of this holds for groups in place of sequences: each is dealt whole.

    Args:
        lengths: Tokens of each sequence, >= 1 (as packed: see `padded_length`).
        dp_size: Number of data-parallel ranks.
        max_tokens: Most tokens of a micro-batch.
        multiple_of: The number of micro-batches on a rank is a multiple of this (the interleaved
            pipeline schedule needs the number of pipeline stages).
        groups: Positions of the sequences that have to be in one micro-batch; every position in
            exactly one group. None: each sequence on its own.

    Returns:
        ``result[rank][micro_batch]``, a list of positions in ``lengths``. On each rank the
        micro-batches go from large to small.

    Raises:
        ValueError: There are fewer than ``dp_size * multiple_of`` sequences, a length is less than
            1, or the groups do not hold every sequence once; or the sequences are too long to share
            micro-batches, too many for one each on ``dp_size`` ranks, and not divisible. The last
            cannot happen when the number of sequences is a multiple of ``dp_size * multiple_of``.
    """
    if lengths and min(lengths) < 1:
        raise ValueError("a sequence has no tokens")
    if groups is None:
        return _partition(lengths, dp_size, max_tokens, multiple_of, "sequences")
    if sorted(index for group in groups for index in group) != list(range(len(lengths))):
        raise ValueError(f"the groups do not hold each of the {len(lengths)} sequences once")
    sizes = [sum(lengths[index] for index in group) for group in groups]
    dealt = _partition(sizes, dp_size, max_tokens, multiple_of, "groups of sequences")
    return [
        [[index for unit in packed for index in groups[unit]] for packed in rank] for rank in dealt
    ]


def _partition(
    lengths: abc.Sequence[int], dp_size: int, max_tokens: int, multiple_of: int, units: str
) -> list[list[list[int]]]:
    stride = dp_size * multiple_of
    if len(lengths) < stride:
        raise ValueError(
            f"{len(lengths)} {units} are too few for {dp_size} data-parallel ranks with "
            f"{multiple_of} or more micro-batches each: at least {stride} are needed"
        )
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])

    def fits(count: int) -> bool:
        return all(
            len(packed) == 1 or sum(lengths[index] for index in packed) <= max_tokens
            for packed in _fill(longest_first, lengths, count)
        )

    # More micro-batches never make the largest one larger, so what fits once fits from then on.
    counts = range(stride, len(lengths) + 1, stride)
    chosen = bisect_left(counts, True, key=fits)
    if chosen == len(counts):
        raise ValueError(
            f"{len(lengths)} {units} do not fit into {counts[-1]} micro-batches of {max_tokens} "
            f"tokens: make their number a multiple of {stride} (data-parallel ranks times "
            f"{multiple_of}), or allow more tokens"
        )
    return _deal(_fill(longest_first, lengths, counts[chosen]), lengths, dp_size)


def _fill(longest_first: Iterable[int], lengths: abc.Sequence[int], count: int) -> list[list[int]]:
    """Put each sequence into the micro-batch with the fewest tokens, of ``count``."""
    micro_batches: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for index in longest_first:
        tokens, number = emptiest[0]
        micro_batches[number].append(index)
        heapq.heapreplace(emptiest, (tokens + lengths[index], number))
    return micro_batches


def _deal(
    micro_batches: list[list[int]], lengths: abc.Sequence[int], dp_size: int
) -> list[list[list[int]]]:
    """Give each rank one micro-batch a round, largest first, the largest to the lightest rank."""
    sized = [(sum(lengths[index] for index in packed), packed) for packed in micro_batches]
    sized.sort(key=lambda pair: -pair[0])
    ranks: list[list[list[int]]] = [[] for _ in range(dp_size)]
    totals = [0] * dp_size
    for start in range(0, len(sized), dp_size):
        lightest_first = sorted(range(dp_size), key=totals.__getitem__)
        for rank, (tokens, packed) in zip(
            lightest_first, sized[start : start + dp_size], strict=True
        ):
            ranks[rank].append(packed)
            totals[rank] += tokens
    return ranks


def filled(
    sequences: abc.Sequence[Sequence],
    groups: abc.Sequence[tuple[int, ...]] | None,
    multiple: int,
) -> tuple[list[Sequence], list[tuple[int, ...]]]:
    """Append copies of the shortest group, nothing of them trained on, up to a multiple of groups.

    For passes over a number of rows that nobody chose: no loss counts what is not trained on.

    Args:
        sequences: All sequences.
        groups: See `partition`.
        multiple: The number of groups becomes a multiple of this.

    Returns:
        The sequences, those given first, and the groups.
    """
    longer = list(sequences)
    parts = [(index,) for index in range(len(longer))] if groups is None else list(groups)
    tokens = [sum(len(longer[index].token_ids) for index in group) for group in parts]
    shortest = parts[tokens.index(min(tokens))]
    for _ in range(-len(parts) % multiple):
        parts.append(tuple(range(len(longer), len(longer) + len(shortest))))
        longer += [_untrained(sequences[index]) for index in shortest]
    return longer, parts


def _untrained(sequence: Sequence) -> Sequence:
    mask = [0.0] * len(sequence.token_ids)
    return Sequence(sequence.token_ids, mask, sequence.fields, sequence.values)
