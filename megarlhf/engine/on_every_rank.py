"""What a pass found on some ranks, on every rank."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from megarlhf.data.records import Sequence as TokenSequence


def on_every_rank(
    found: Mapping[int, list[float]], sequences: Sequence[TokenSequence], device: torch.device
) -> list[list[float]]:
    """Put together what `ModelEngine.logprobs` gave to each rank. Collective over all ranks.

    Args:
        found: A float a token of some sequences, by index; every sequence is in some rank's.
        sequences: All of them.
        device: Where the ranks communicate.

    Returns:
        For every sequence its floats, the same bits on every rank.
    """
    lengths = [len(sequence.token_ids) for sequence in sequences]
    rank = dist.get_rank()
    holders = torch.full((len(lengths),), dist.get_world_size())
    holders[list(found)] = rank
    holders = holders.to(device)
    dist.all_reduce(
        holders, op=dist.ReduceOp.MIN
    )  # context ranks hold the same: the first gives it
    flat = torch.zeros(sum(lengths), dtype=torch.float64)
    for index, (own, holder) in enumerate(zip(flat.split(lengths), holders.tolist(), strict=True)):
        if holder == rank:
            own.copy_(torch.tensor(found[index], dtype=torch.float64))
    flat = flat.to(device)
    dist.all_reduce(flat)  # all others add zeros
    return [own.tolist() for own in flat.cpu().split(lengths)]
