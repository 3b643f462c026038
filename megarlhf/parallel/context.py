"""Context parallelism's zig-zag cut of packed sequences.

Each sequence, padded to a multiple of 2 cp, is cut into 2 cp chunks; rank i holds chunks i and
2 cp - 1 - i, so that causal attention costs every rank the same. A rank's micro-batch has, sequence
after sequence, its early chunk and then its late one.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from megarlhf.data.records import MicroBatch
from megarlhf.parallel.device import put


def zigzag_indices(lengths: Sequence[int], rank: int, size: int) -> torch.Tensor:
    """Which of the packed tokens a context-parallel rank holds, in its order.

    Args:
        lengths: Padded lengths of the packed sequences, multiples of ``2 * size``.
        rank: Context-parallel rank.
        size: Context-parallel size.

    Returns:
        int64 [T / size].

    Raises:
        ValueError: A length is no multiple of ``2 * size``.
    """
    return torch.cat([torch.arange(*chunk) for chunk in _chunks(lengths, rank, size)])


def _chunks(lengths: Sequence[int], rank: int, size: int) -> Iterator[tuple[int, int]]:
    """A rank's chunks in its order, each by its first token and the one behind its last."""
    begin = 0
    for length in lengths:
        chunk, rest = divmod(length, 2 * size)
        if rest:
            raise ValueError(f"a sequence of {length} tokens cannot be cut into {2 * size} chunks")
        for number in (rank, 2 * size - 1 - rank):
            yield begin + number * chunk, begin + (number + 1) * chunk
        begin += length


def zigzag_positions(
    positions: Sequence[int], lengths: Sequence[int], rank: int, size: int
) -> tuple[int, ...]:
    """Where a rank has, in its order, those of the packed positions (ascending) that it holds."""
    found, offset = [], 0
    for start, stop in _chunks(lengths, rank, size):
        held = positions[bisect_left(positions, start) : bisect_left(positions, stop)]
        found += [position - start + offset for position in held]
        offset += stop - start
    return tuple(found)


def local_part(batch: MicroBatch, group: dist.ProcessGroup) -> MicroBatch:
    """What a context-parallel rank runs of a micro-batch; ``lengths`` become the local ones."""
    size = group.size()
    if size == 1:
        return batch
    mine = zigzag_indices(batch.lengths, group.rank(), size)
    return MicroBatch(
        token_ids=batch.token_ids[mine],
        position_ids=batch.position_ids[mine],
        targets=batch.targets[mine],
        loss_mask=batch.loss_mask[mine],
        fields={name: values[mine] for name, values in batch.fields.items()},
        padding=batch.padding[mine],
        ends=batch.ends[mine],
        lengths=tuple(length // size for length in batch.lengths),
        order=batch.order,
        context_group=group,
        values=batch.values,
        starts=batch.starts,
        behind=batch.behind,
        trained=zigzag_positions(batch.trained, batch.lengths, group.rank(), size),
    )


def gather_tokens(
    values: torch.Tensor, lengths: Sequence[int], group: dist.ProcessGroup
) -> torch.Tensor:
    """Put the ranks' per-token values back into the packed order.

    Args:
        values: [T / size], this rank's, in its order; any dtype.
        lengths: Padded lengths of the whole packed sequences.
        group: The context-parallel group.

    Returns:
        [T], the same on every rank.
    """
    size = group.size()
    if size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(parts, values.contiguous(), group=group)
    whole = values.new_empty(sum(lengths))
    for rank, part in enumerate(parts):
        whole[zigzag_indices(lengths, rank, size).to(values.device)] = part
    return whole


def sequence_sums(values: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """Sum per-token values over each whole sequence, also where context ranks share it.

    Differentiable. The result is the same on all ``batch.copies`` ranks that share the sequences: a
    loss made of it must be divided by ``batch.copies`` to count once.

    Args:
        values: Floating [T], this rank's tokens.
        batch: This rank's part of the micro-batch, n sequences.

    Returns:
        [n], in the order of ``batch.order``.
    """
    owners = torch.repeat_interleave(
        torch.arange(len(batch.lengths)), torch.tensor(batch.lengths), output_size=len(values)
    )
    owners = put(owners, values.device)
    sums = values.new_zeros(len(batch.lengths)).index_add(0, owners, values)
    return sums if batch.context_group is None else _SumOver.apply(sums, batch.context_group)


class _SumOver(torch.autograd.Function):
    """all_reduce, whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, part: torch.Tensor, group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.group = group
        whole = part.clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:  # noqa: ANN001
        whole = grad.clone()
        dist.all_reduce(whole, group=ctx.group)
        return whole, None
