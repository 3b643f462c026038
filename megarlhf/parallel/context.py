"""Context parallelism's zig-zag cut of packed sequences.

Each sequence, padded to a multiple of 2 cp, is cut into 2 cp chunks; rank i holds chunks i and
2 cp - 1 - i, so that causal attention costs every rank the same. A rank's micro-batch has, sequence
after sequence, its early chunk and then its late one.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megarlhf.data.records import MicroBatch


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
    parts, begin = [], 0
    for length in lengths:
        chunk, rest = divmod(length, 2 * size)
        if rest:
            raise ValueError(f"a sequence of {length} tokens cannot be cut into {2 * size} chunks")
        for number in (rank, 2 * size - 1 - rank):
            parts.append(torch.arange(begin + number * chunk, begin + (number + 1) * chunk))
        begin += length
    return torch.cat(parts)


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
        torch.arange(len(batch.lengths), device=values.device),
        torch.tensor(batch.lengths, device=values.device),
    )
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
