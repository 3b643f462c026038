"""A ring of ranks: each passes a tensor on to the next and gets the previous one's."""

import torch
import torch.distributed as dist


class Ring:
    """Passing a tensor on to the next rank of a group, and getting the previous rank's."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.size = group.size() if group is not None else 1
        self.rank = group.rank() if group is not None else 0
        self._steps_left = self.size

    def sources(self) -> list[int]:
        """Whose keys are here, step by step."""
        return [(self.rank - step) % self.size for step in range(self.size)]

    def shift(self, tensor: torch.Tensor, *, always: bool = False) -> "Shift":
        """Start passing on; nothing travels when the last block is reached (unless ``always``)."""
        if not always:
            self._steps_left -= 1
        if self.size == 1 or (self._steps_left == 0 and not always):
            return Shift(tensor, [])
        received = torch.empty_like(tensor)
        following = dist.get_global_rank(self._group, (self.rank + 1) % self.size)
        previous = dist.get_global_rank(self._group, (self.rank - 1) % self.size)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, following, self._group),
                dist.P2POp(dist.irecv, received, previous, self._group),
            ]
        )
        return Shift(received, works)


class Shift:
    """A tensor on its way."""

    def __init__(self, tensor: torch.Tensor, works: list) -> None:
        self._tensor, self._works = tensor, works

    def wait(self) -> torch.Tensor:
        """The tensor, once it is here and ours has left."""
        for work in self._works:
            work.wait()
        return self._tensor
