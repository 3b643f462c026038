"""What happens to rows with more tokens than ``data.max_tokens`` allows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megarlhf.data.records import Example
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.data.rows import Row
from megarlhf.errors import UserError

Policy = Literal["error", "drop", "truncate_left", "truncate_right"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """What is left of an example.

    Attributes:
        example: The example, perhaps shorter; None if it is dropped.
        reason: Why it is shorter or dropped; None if nothing happened to it.
    """

    example: Example | None
    reason: str | None = None


@dataclass(frozen=True)
class Limit:
    """The most tokens a sequence may have, and what is done with longer ones.

    Attributes:
        max_tokens: ``data.max_tokens``.
        policy: ``data.overlong_rows``. ``error`` and ``drop`` drop the row (whether that is an
            error is for the caller to say: it counts them first). ``truncate_right`` takes tokens
            off the end of each sequence; ``truncate_left`` off the start of the prompt, as many of
            every sequence of the row, and leaves at least one of its tokens. Where there is no
            prompt, it takes them off the start of the text.
    """

    max_tokens: int
    policy: Policy

    @property
    def overlong(self) -> str:
        """Why a row is dropped that is too long and is not cut."""
        return f"longer than data.max_tokens={self.max_tokens}"

    def fit(self, example: Example) -> Fitted:
        """The example within the limit."""
        excess = max(len(sequence.token_ids) for sequence in example.sequences) - self.max_tokens
        if excess <= 0:
            return Fitted(example)
        if self.policy == "truncate_right":
            return self._cut_right(example)
        if self.policy == "truncate_left":
            return self._cut_left(example, excess)
        return Fitted(None, self.overlong)

    def _cut_right(self, example: Example) -> Fitted:
        shorter = [_part(sequence, 0, self.max_tokens) for sequence in example.sequences]
        if not all(any(sequence.loss_mask) for sequence in shorter):
            return Fitted(None, f"the prompt alone fills data.max_tokens={self.max_tokens}")
        if len(shorter) > 1 and all(one.token_ids == shorter[0].token_ids for one in shorter):
            return Fitted(None, f"chosen equals rejected within data.max_tokens={self.max_tokens}")
        cut = Example(shorter, min(example.prompt_tokens, self.max_tokens), example.values)
        return Fitted(cut, f"cut on the right to data.max_tokens={self.max_tokens}")

    def _cut_left(self, example: Example, excess: int) -> Fitted:
        reason = f"cut on the left to data.max_tokens={self.max_tokens}"
        if not example.prompt_tokens:
            ends = [
                _part(sequence, max(0, len(sequence.token_ids) - self.max_tokens), None)
                for sequence in example.sequences
            ]
            return Fitted(Example(ends, 0, example.values), reason)
        if excess >= example.prompt_tokens:
            return Fitted(
                None, f"the response alone is longer than data.max_tokens={self.max_tokens}"
            )
        shorter = [_part(sequence, excess, None) for sequence in example.sequences]
        return Fitted(Example(shorter, example.prompt_tokens - excess, example.values), reason)


def _part(sequence: TokenSequence, begin: int, end: int | None) -> TokenSequence:
    """Tokens ``begin`` to ``end``; nothing predicts the first of them."""
    loss_mask = sequence.loss_mask[begin:end]
    loss_mask[0] = 0.0
    fields = {name: values[begin:end] for name, values in sequence.fields.items()}
    return TokenSequence(sequence.token_ids[begin:end], loss_mask, fields)


def short_enough(
    rows: Sequence[Row],
    lengths: Sequence[int],
    *,
    limit: int,
    limit_key: str,
    overlong: str,
    overlong_key: str,
) -> list[int]:
    """Positions of the rows of at most ``limit`` tokens; how many others are dropped is logged.

    Args:
        rows: Rows.
        lengths: Tokens of each row.
        limit: Most tokens a row may have.
        limit_key: Configuration key of ``limit``, for messages.
        overlong: ``"error"`` or ``"drop"``: what to do with longer rows.
        overlong_key: Configuration key of ``overlong``, for messages.

    Raises:
        UserError: A row is longer and ``overlong`` is ``"error"``; or no row is left.
    """
    kept = [position for position, length in enumerate(lengths) if length <= limit]
    dropped = len(rows) - len(kept)
    if dropped and (overlong == "error" or not kept):
        first = next(position for position, length in enumerate(lengths) if length > limit)
        total = f"{dropped} of {len(rows)} rows are too long"
        raise UserError(
            f"{lengths[first]} tokens are more than {limit_key}={limit} ({total})",
            where=rows[first].where,
            fix=f"raise {limit_key}" + (f" or set {overlong_key}=drop" if kept else ""),
        )
    if dropped:
        logger.warning(
            "dropped %d of %d rows: longer than %s=%d", dropped, len(rows), limit_key, limit
        )
    return kept
