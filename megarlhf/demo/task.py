"""The demo's task: sums of a few small numbers, in words.

A question is ``what is three plus four minus two?``. There are two ways to answer it:

- worked: ``first three plus four is seven, minus two is five.``, which a small model learns well;
- off hand: ``it is five.``, which asks for the whole sum in one go, and goes wrong often.

The rows for supervised training hold mostly answers off hand (right ones), so the warmed-up model
answers like that and is often wrong. It can do better, and the reward alone tells it so.
"""

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
"""The words for 0 to 12; no running total leaves this range."""

HELD_OUT_OF = 8  # one sum in so many is held out
OPERANDS = (4,)


@dataclass(frozen=True)
class Sum:
    """One sum: a first number from 1 to 9, then numbers from 1 to 9 added or taken away.

    Attributes:
        first: The first number.
        steps: What is added to it in turn; negative where the question says "minus".
    """

    first: int
    steps: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The running total after each step."""
        total = self.first
        return tuple(total := total + step for step in self.steps)

    @property
    def question(self) -> str:
        """The question in words."""
        return f"what is {NUMBERS[self.first]} {' '.join(map(_step_text, self.steps))}?"

    @property
    def answer(self) -> str:
        """The right answer, one word."""
        return NUMBERS[self.totals[-1]]

    @property
    def solution(self) -> str:
        """The worked answer, total by total."""
        befores = (self.first, *self.totals)
        parts = (
            f"{NUMBERS[before]} {_step_text(step)} is {NUMBERS[after]}"
            for before, step, after in zip(befores, self.steps, self.totals, strict=False)
        )
        return f"first {', '.join(parts)}."

    @property
    def off_hand(self) -> str:
        """The answer without the work."""
        return f"it is {self.answer}."

    @property
    def is_held_out(self) -> bool:
        """Whether the sum is kept from training: a hash of its numbers, the same in every run."""
        return zlib.crc32(self.question.encode()) % HELD_OUT_OF == 0


def write_task(
    directory: str | Path,
    seed: int,
    *,
    sft_rows: int = 8192,
    rl_rows: int = 2048,
    heldout_rows: int = 256,
    worked_share: float = 0.3,
) -> None:
    """Write the task's files, which depend on the arguments alone.

    ``sft.jsonl`` has rows ``{"input", "output"}``; ``rl_train.jsonl`` and ``heldout.jsonl`` have
    rows ``{"question", "label"}``. No sum in ``heldout.jsonl`` is in either of the others.

    Args:
        directory: Where to write; made if need be.
        seed: Which sums are drawn.
        sft_rows: Rows of ``sft.jsonl``.
        rl_rows: Rows of ``rl_train.jsonl``.
        heldout_rows: Rows of ``heldout.jsonl``.
        worked_share: Probability that an answer in ``sft.jsonl`` is worked, not off hand.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"answers {seed}")
    sft = [
        {"input": s.question, "output": s.solution if rng.random() < worked_share else s.off_hand}
        for s in draw_sums(f"sft {seed}", sft_rows, held_out=False)
    ]
    _write_rows(folder / "sft.jsonl", sft)
    for name, count, held_out in (("rl_train", rl_rows, False), ("heldout", heldout_rows, True)):
        sums = draw_sums(f"{name} {seed}", count, held_out=held_out)
        rows = [{"question": s.question, "label": s.answer} for s in sums]
        _write_rows(folder / f"{name}.jsonl", rows)


def draw_sums(seed: str, count: int, *, held_out: bool) -> list[Sum]:
    """Draw different sums, all of them held out or none.

    Args:
        seed: Seed of the draw.
        count: How many; there are a few thousand held-out ones and many more of the others.
        held_out: Which side of the split to draw from.
    """
    drawn: dict[Sum, None] = {}
    for candidate in _random_sums(random.Random(seed)):
        if len(drawn) == count:
            break
        if candidate.is_held_out == held_out:
            drawn[candidate] = None
    return list(drawn)


def _random_sums(rng: random.Random) -> Iterator[Sum]:
    """Sums without end whose running totals all have a word."""
    while True:
        steps = (rng.choice((1, -1)) * rng.randint(1, 6) for _ in range(rng.choice(OPERANDS) - 1))
        candidate = Sum(rng.randint(1, 6), tuple(steps))
        if all(0 <= total < len(NUMBERS) for total in candidate.totals):
            yield candidate


def _step_text(step: int) -> str:
    return f"{'plus' if step > 0 else 'minus'} {NUMBERS[abs(step)]}"


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
