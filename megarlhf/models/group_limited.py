"""Experts from a few groups only: DeepSeek's way to bound the ranks that a token is sent to."""

from typing import Any

import torch


class GroupLimited:
    """Choose experts from the groups whose best ones score highest, as DeepSeek-V2 and V3 do.

    It stands where Megatron asks a recorded run for its choice. Megatron 0.16.1's own choice adds up
    the best topk / group_topk of a group, which is not V2's rule, and V3's only for its sizes.

    Args:
        best: How many of a group's experts make its score: V2's 1, V3's 2.
    """

    def __init__(self, best: int) -> None:
        self._best = best

    def get_replay_topk(
        self, scores: torch.Tensor, topk: int, num_groups: int, group_topk: int, _: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and indices [tokens, topk] of the chosen of ``scores`` [tokens, experts]."""
        groups = scores.unflatten(1, (num_groups, -1))
        chosen = groups.topk(self._best, dim=-1).values.sum(-1).topk(group_topk, dim=-1).indices
        others = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, chosen, False)
        limited = groups.masked_fill(others[..., None], float("-inf")).flatten(1)
        return limited.topk(topk, dim=-1)
