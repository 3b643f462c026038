"""What the context-parallel ranks run in the tests of the losses."""

import torch.distributed as dist

from megarlhf.parallel.context import local_part


def sum_of_losses(rank, world, loss, values, entropy, batch):
    """This rank's part of the summed loss, its metrics, and its tokens' gradients by position."""
    mine = local_part(batch, dist.group.WORLD)
    places = mine.token_ids  # the packed batch counts its tokens, so these are positions
    own = values[places].clone().requires_grad_()
    total, metrics = loss(own, entropy[places], mine)
    total.backward()
    return total.item(), {k: v.item() for k, v in metrics.items()}, places, own.grad
