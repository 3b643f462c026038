"""Attention from explicit scores, for soft caps and windows: no flash kernel here has them.

Shapes: B blocks, n query heads, g key/value heads (g divides n), Lq and Lk tokens, d head size. Scores
exist for `ROWS` queries at a time, and only for the keys between the first and the last that these see:
memory and time grow with the window, not with the length, where there is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megarlhf.parallel.device import put

ROWS = 256  # queries whose scores are in memory at once


@dataclass(frozen=True)
class Scoring:
    """What happens to scores beside the causal mask.

    Attributes:
        cap: Scores s become cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118).
        window: A token sees the last ``window`` ones, itself among them (Mistral, arXiv:2310.06825).
    """

    cap: float | None = None
    window: int | None = None

    def matters(self, length: int) -> bool:
        """Whether a sequence of this many tokens has other results than with the flash kernel."""
        return self.cap is not None or (self.window is not None and length > self.window)


@dataclass(frozen=True)
class ScoredBlock:
    """A block whose tokens are at given places of their sequence.

    Attributes:
        scoring: Cap and window.
        scale: Of the scores.
        queries: int64 [Lq] on the host: each query's place in its sequence; [B, 1, 1, Lq] where blocks
            differ.
        keys: int64 [Lk], the same of the keys.
    """

    scoring: Scoring
    scale: float
    queries: torch.Tensor
    keys: torch.Tensor

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `flash.block_forward`. A query that sees no key of the block: 0, and -inf."""
        query, key, value = self._grouped(query, key, value)
        wide = _wide(query.dtype)
        out = torch.zeros_like(query)
        lse = query.new_full(query.shape[:-1], float("-inf"), dtype=wide)
        for rows, seen in self._parts():
            scores, _ = self._scores(query, key, rows, seen)
            part = scores.logsumexp(-1)
            weights = (scores - part.masked_fill(part.isneginf(), 0)[..., None]).exp()
            out[..., rows, :] = (weights @ value[..., seen, :].to(wide)).to(out.dtype)
            lse[..., rows] = part
        return out.flatten(1, 2), lse.flatten(1, 2)

    def backward(
        self,
        grad_out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `flash.block_backward`."""
        query, key, value = self._grouped(query, key, value)
        wide, heads = _wide(query.dtype), query.shape[1:3]
        grad_out, out = (t.to(wide).unflatten(1, heads) for t in (grad_out, out))
        lse = lse.unflatten(1, heads)
        grads = [torch.zeros(t.shape, dtype=wide, device=t.device) for t in (query, key, value)]
        for rows, seen in self._parts():
            scores, slope = self._scores(query, key, rows, seen)
            weights = (scores - lse[..., rows, None]).exp()
            above = grad_out[..., rows, :]
            grads[2][..., seen, :] += (weights.mT @ above).sum(2, keepdim=True)
            change = above @ value[..., seen, :].to(wide).mT
            change -= (above * out[..., rows, :]).sum(-1, keepdim=True)
            change *= weights * self.scale if slope is None else weights * slope * self.scale
            grads[0][..., rows, :] = change @ key[..., seen, :].to(wide)
            grads[1][..., seen, :] += (change.mT @ query[..., rows, :].to(wide)).sum(
                2, keepdim=True
            )
        return grads[0].flatten(1, 2), grads[1][:, :, 0], grads[2][:, :, 0]

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Some queries, and the keys from the first to the last that any of them sees."""
        for begin in range(0, self.queries.shape[-1], ROWS):
            places = self.queries[..., begin : begin + ROWS]
            seen = self.keys <= places.max()
            if self.scoring.window is not None:
                seen &= self.keys > places.min() - self.scoring.window
            found = seen.nonzero()
            if len(found):
                rows = slice(begin, begin + places.shape[-1])
                yield rows, slice(int(found[0]), int(found[-1]) + 1)

    def _scores(
        self, query: torch.Tensor, key: torch.Tensor, rows: slice, seen: slice
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores, -inf where hidden, and the cap's derivative [B, g, n / g, rows, seen]."""
        wide = _wide(query.dtype)
        scores = query[..., rows, :].to(wide) @ key[..., seen, :].to(wide).mT * self.scale
        slope = None
        if self.scoring.cap is not None:
            bent = (scores / self.scoring.cap).tanh()
            scores, slope = bent * self.scoring.cap, 1 - bent.square()
        behind = self.queries[..., rows, None] - self.keys[seen]
        hidden = behind < 0
        if self.scoring.window is not None:
            hidden |= behind >= self.scoring.window
        return scores.masked_fill(put(hidden, scores.device), float("-inf")), slope

    @staticmethod
    def _grouped(*heads: torch.Tensor) -> Iterator[torch.Tensor]:
        """[B, n, L, d] -> [B, g, n / g, L, d], so that a key's head meets the queries' that share it."""
        groups = heads[1].shape[1]
        return (tensor.unflatten(1, (groups, -1)) for tensor in heads)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
