"""From sequences to the packed tensors of a micro-batch, and back. Pure functions."""

import itertools
from collections import abc

import torch

from megarlhf.data.beginnings import pieces_of
from megarlhf.data.records import MicroBatch, Sequence


def padded_length(length: int, multiple: int) -> int:
    """``length`` rounded up to a multiple: what a sequence takes up in a padded micro-batch."""
    return -(-length // multiple) * multiple


def collate(
    sequences: abc.Sequence[Sequence],
    indices: abc.Sequence[int],
    *,
    pad_to_multiple: int = 1,
    share: bool = False,
    with_last: bool = True,
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
        share: Pack the beginnings that sequences have in common once: see `beginnings`.
        with_last: Pack the last token of each sequence, too.

    Raises:
        ValueError: Nothing is chosen, the sequences differ in the names of their fields or values,
            or a mask or field is not as long as its sequence.
    """
    if not indices:
        raise ValueError("a micro-batch needs at least one sequence")
    pieces = pieces_of(sequences, indices, share=share, with_last=with_last)
    names, numbers = list(sequences[indices[0]].fields), list(sequences[indices[0]].values)
    token_ids: list[int] = []
    position_ids: list[int] = []
    targets: list[int] = []
    loss_mask: list[float] = []
    fields: dict[str, list[float]] = {name: [] for name in names}
    is_padding: list[bool] = []
    ends: list[bool] = []
    lengths: list[int] = []
    for index, begin, end, _, is_shared in pieces:
        sequence = sequences[index]
        _check(sequence, index, names, numbers)
        length = padded_length(end - begin, pad_to_multiple)
        padding = [0] * (length - (end - begin))
        ahead = slice(begin + 1, end + 1)
        is_last = end == len(sequence.token_ids)
        nothing = [0] if is_last else []  # is predicted by the last token of a sequence
        token_ids += [*sequence.token_ids[begin:end], *padding]
        position_ids += range(begin, begin + length)
        is_padding += [False] * (end - begin) + [True] * len(padding)
        ends += [*[False] * (end - begin - 1), not is_shared, *[False] * len(padding)]
        targets += [*sequence.token_ids[ahead], *nothing, *padding]
        loss_mask += [*sequence.loss_mask[ahead], *nothing, *padding]
        for name in names:
            fields[name] += [*sequence.fields[name][ahead], *nothing, *padding]
        lengths.append(length)
    return MicroBatch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        position_ids=torch.tensor(position_ids, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        loss_mask=torch.tensor(loss_mask, dtype=torch.float32),
        fields={name: torch.tensor(values, dtype=torch.float32) for name, values in fields.items()},
        padding=torch.tensor(is_padding, dtype=torch.bool),
        ends=torch.tensor(ends, dtype=torch.bool),
        lengths=tuple(lengths),
        order=tuple(-1 if piece.is_shared else piece.index for piece in pieces),
        values={
            name: torch.tensor(
                [sequences[piece.index].values[name] for piece in pieces], dtype=torch.float32
            )
            for name in numbers
        },
        starts=tuple(piece.begin for piece in pieces),
        behind=tuple(piece.behind for piece in pieces),
        trained=tuple(position for position, mask in enumerate(loss_mask) if mask),
    )


def _check(sequence: Sequence, index: int, names: list[str], numbers: list[str]) -> None:
    if sequence.fields.keys() != set(names):
        raise ValueError(f"sequence {index} has fields {sorted(sequence.fields)}, not {names}")
    if sequence.values.keys() != set(numbers):
        raise ValueError(f"sequence {index} has values {sorted(sequence.values)}, not {numbers}")
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
    scattered, offsets = [], list(itertools.accumulate(micro_batch.lengths, initial=0))
    for number, (index, packed_length) in enumerate(
        zip(micro_batch.order, micro_batch.lengths, strict=True)
    ):
        if index < 0:
            continue
        before, begin = micro_batch.starts[number], offsets[number]
        if lengths[index] - before - 1 > packed_length:
            raise ValueError(
                f"sequence {index} has {lengths[index]} tokens but was packed with {packed_length}"
            )
        shared = offsets[micro_batch.behind[number]] if before else 0
        own = flat[begin : begin + lengths[index] - before - 1]
        scattered.append((index, [0.0, *flat[shared : shared + before], *own]))
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
    found, begin = [], 0
    for index, packed_length, before in zip(
        micro_batch.order, micro_batch.lengths, micro_batch.starts, strict=True
    ):
        if index >= 0:
            found.append((index, flat[begin + lengths[index] - before - 1]))
        begin += packed_length
    return found
