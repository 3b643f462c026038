"""What one process does for all: create, check and publish a directory that they share."""

from collections.abc import Callable

import torch.distributed as dist

from megarlhf.errors import UserError


def on_first(act: Callable[[], None]) -> None:
    """Let the first rank act; the others wait, and fail with it.

    Collective where there are process groups; a process of its own is the first.
    """
    if not dist.is_initialized():
        act()
        return
    outcome: list[UserError | None] = [None]
    if dist.get_rank() == 0:
        try:
            act()
        except UserError as error:
            outcome[0] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]
