"""From a batch of sequences to micro-batches on data-parallel ranks, and back. Pure functions."""

import heapq
from bisect import bisect_left
from collections import abc
from collections.abc import Iterable

import torch

from megarlhf.data.records import MicroBatch, Sequence


def partition(
    lengths: abc.Sequence[int], *, dp_size: int, max_tokens: int, multiple_of: int = 1
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

    Args:
        lengths: Tokens of each sequence, >= 1 (as packed: see `padded_length`).
        dp_size: Number of data-parallel ranks.
        max_tokens: Most tokens of a micro-batch.
        multiple_of: The number of micro-batches on a rank is a multiple of this (the interleaved
            pipeline schedule needs the number of pipeline stages).

    Returns:
        ``result[rank][micro_batch]``, a list of positions in ``lengths``. On each rank the
        micro-batches go from large to small.

    Raises:
        ValueError: There are fewer than ``dp_size * multiple_of`` sequences, or a length is less
            than 1; or the sequences are too long to share micro-batches, too many for one each on
            ``dp_size`` ranks, and not divisible. The last cannot happen when the number of
            sequences is a multiple of ``dp_size * multiple_of``.
    """
    stride = dp_size * multiple_of
    if len(lengths) < stride:
        raise ValueError(
            f"{len(lengths)} sequences are too few for {dp_size} data-parallel ranks with "
            f"{multiple_of} or more micro-batches each: at least {stride} are needed"
        )
    if min(lengths) < 1:
        raise ValueError("a sequence has no tokens")
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
            f"{len(lengths)} sequences do not fit into {counts[-1]} micro-batches of {max_tokens} "
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


def padded_length(length: int, multiple: int) -> int:
    """``length`` rounded up to a multiple: what a sequence takes up in a padded micro-batch."""
    return -(-length // multiple) * multiple


def collate(
    sequences: abc.Sequence[Sequence], indices: abc.Sequence[int], *, pad_to_multiple: int = 1
) -> MicroBatch:
    """Pack the chosen sequences end to end, the longest first.

    Sequences of equal length are neighbours (in the order of ``indices``), so attention can take a
    run of them at once. Everything that belongs to the prediction of token t+1 moves to entry t;
    the last token of a sequence predicts nothing: its target, mask and fields are 0.

    Args:
        sequences: All sequences of the batch.
        indices: Which of them to pack.
        pad_to_multiple: Pad each sequence on the right with token 0, target 0, mask 0 and fields 0
            to a multiple of this, as context parallelism needs; positions go on. ``lengths`` are
            the padded ones.

    Raises:
        ValueError: Nothing is chosen, the sequences differ in the names of their fields, or a mask
            or field is not as long as its sequence.
    """
    if not indices:
        raise ValueError("a micro-batch needs at least one sequence")
    order = sorted(indices, key=lambda index: -len(sequences[index].token_ids))
    names = list(sequences[order[0]].fields)
    token_ids: list[int] = []
    position_ids: list[int] = []
    targets: list[int] = []
    loss_mask: list[float] = []
    fields: dict[str, list[float]] = {name: [] for name in names}
    is_padding: list[bool] = []
    lengths: list[int] = []
    for index in order:
        sequence = sequences[index]
        _check(sequence, index, names)
        length = padded_length(len(sequence.token_ids), pad_to_multiple)
        padding = [0] * (length - len(sequence.token_ids))
        token_ids += [*sequence.token_ids, *padding]
        position_ids += range(length)
        is_padding += [False] * len(sequence.token_ids) + [True] * len(padding)
        targets += [*sequence.token_ids[1:], 0, *padding]
        loss_mask += [*sequence.loss_mask[1:], 0, *padding]
        for name in names:
            fields[name] += [*sequence.fields[name][1:], 0, *padding]
        lengths.append(length)
    return MicroBatch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        position_ids=torch.tensor(position_ids, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        loss_mask=torch.tensor(loss_mask, dtype=torch.float32),
        fields={name: torch.tensor(values, dtype=torch.float32) for name, values in fields.items()},
        padding=torch.tensor(is_padding, dtype=torch.bool),
        lengths=tuple(lengths),
        order=tuple(order),
    )


def _check(sequence: Sequence, index: int, names: list[str]) -> None:
    if sequence.fields.keys() != set(names):
        raise ValueError(f"sequence {index} has fields {sorted(sequence.fields)}, not {names}")
    for name, values in {"loss_mask": sequence.loss_mask, **sequence.fields}.items():
        if len(values) != len(sequence.token_ids):
            raise ValueError(
                f"sequence {index}: {name} has {len(values)} entries for "
                f"{len(sequence.token_ids)} tokens"
            )


def scatter(
    values: torch.Tensor, micro_batch: MicroBatch, lengths: abc.Sequence[int]
) -> list[tuple[int, list[float]]]:
    """Give a per-token output of a packed forward pass back to its sequences.

    Undoes `collate`: padding goes, and what was computed *at* token t-1 (a log-probability of token
    t, say) moves to entry t, as in `Sequence`. Entry 0 is 0.0.

    Args:
        values: Any floating dtype and device, [T].
        micro_batch: What the forward pass ran on.
        lengths: Tokens of each sequence without padding, by its position in the list that was
            packed (the one that ``micro_batch.order`` points into).

    Returns:
        For each packed sequence its position in that list and its values, as many as its tokens.

    Raises:
        ValueError: ``values`` has another shape than [T], or a sequence is longer than it was
            packed.
    """
    if values.shape != micro_batch.token_ids.shape:
        raise ValueError(
            f"values have shape {list(values.shape)}, the micro-batch "
            f"{list(micro_batch.token_ids.shape)}"
        )
    flat = values.tolist()
    scattered = []
    start = 0
    for index, packed_length in zip(micro_batch.order, micro_batch.lengths, strict=True):
        if lengths[index] > packed_length:
            raise ValueError(
                f"sequence {index} has {lengths[index]} tokens but was packed with {packed_length}"
            )
        end = start + lengths[index] - 1
        scattered.append((index, [0.0, *flat[start:end]]))
        start += packed_length
    return scattered


def last_values(
    values: torch.Tensor, micro_batch: MicroBatch, lengths: abc.Sequence[int]
) -> list[tuple[int, float]]:
    """What a packed forward pass put out at each sequence's last token, padding not counted.

    See `scatter` for the arguments.

    Returns:
        For each packed sequence its position in the list and the value.
    """
    flat = values.tolist()
    found, start = [], 0
    for index, packed_length in zip(micro_batch.order, micro_batch.lengths, strict=True):
        found.append((index, flat[start + lengths[index] - 1]))
        start += packed_length
    return found
