"""The demo's task: sums of four small numbers, in words.

A question is ``what is three plus four minus two plus one?``. There are two ways to answer it:

- worked, ``first three plus four is seven, seven minus two is five, five plus one is six.``: a
  small model soon does this without a mistake;
- off hand, ``it is six.``: quick and careless. Who answers so overlooks the last number if it is
  to be taken away, and is wrong about half the time.

Most of the rows for supervised training are answered off hand, so the warmed-up model does that
too, mistakes included. It has learned the better way as well; only the reward tells it to prefer
that one.
"""

import itertools
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The words for 0 to 12. No running total leaves this range.
NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
LARGEST = 6  # a sum adds up numbers from 1 to this one
STEPS = 3  # how many of them follow the first
HELD_OUT_OF = 8  # one sum in so many is held out


@dataclass(frozen=True)
class Sum:
    """One sum.

    Attributes:
        first: The first number.
        steps: What is added to it in turn; negative where the question says "minus".
    """

    first: int
    steps: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The running total: the first number, then the total after each step."""
        return tuple(itertools.accumulate(self.steps, initial=self.first))

    @property
    def question(self) -> str:
        """The question in words."""
        return f"what is {NUMBERS[self.first]} {' '.join(map(_step_text, self.steps))}?"

    @property
    def answer(self) -> str:
        """The right answer, one word."""
        return NUMBERS[self.totals[-1]]

    @property
    def off_hand(self) -> str:
        """The careless answer: it overlooks the last number if that is to be taken away."""
        total = self.totals[-1] if self.steps[-1] > 0 else self.totals[-2]
        return f"it is {NUMBERS[total]}."

    @property
    def solution(self) -> str:
        """The answer worked out, step by step."""
        worked = (
            f"{NUMBERS[before]} {_step_text(step)} is {NUMBERS[after]}"
            for step, (before, after) in zip(
                self.steps, itertools.pairwise(self.totals), strict=True
            )
        )
        return f"first {', '.join(worked)}."

    @property
    def is_held_out(self) -> bool:
        """Whether the sum is kept from training: a hash of it decides, the same in every run."""
        return zlib.crc32(self.question.encode()) % HELD_OUT_OF == 0


def write_task(
    directory: str | Path,
    seed: int,
    *,
    sft_rows: int = 4096,
    rl_rows: int = 2048,
    heldout_rows: int = 256,
    worked_share: float = 0.4,
) -> None:
    """Write the task's files, which depend on the arguments alone.

    ``sft.jsonl`` has rows ``{"input", "output"}``; ``rl_train.jsonl`` and ``heldout.jsonl`` have
    rows ``{"question", "label"}``. No sum in ``heldout.jsonl`` is in either of the others.

    Args:
        directory: Where to write; made if need be.
        seed: Which sums are drawn, and which of them are worked.
        sft_rows: Rows of ``sft.jsonl``.
        rl_rows: Rows of ``rl_train.jsonl``.
        heldout_rows: Rows of ``heldout.jsonl``.
        worked_share: Share of ``sft.jsonl`` whose answers are worked; the others are off hand.

    Raises:
        ValueError: There are not so many sums.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    sums = draw_sums(f"sft {seed}", sft_rows, held_out=False)
    worked = round(worked_share * sft_rows)
    sft = [
        {"input": s.question, "output": s.solution if index < worked else s.off_hand}
        for index, s in enumerate(sums)
    ]
    random.Random(seed).shuffle(sft)
    _write_rows(folder / "sft.jsonl", sft)
    for name, count, held_out in (("rl_train", rl_rows, False), ("heldout", heldout_rows, True)):
        sums = draw_sums(f"{name} {seed}", count, held_out=held_out)
        _write_rows(
            folder / f"{name}.jsonl", [{"question": s.question, "label": s.answer} for s in sums]
        )


def draw_sums(seed: str, count: int, *, held_out: bool) -> list[Sum]:
    """Draw different sums, all of them held out or none.

    Raises:
        ValueError: There are fewer than ``count``.
    """
    return random.Random(seed).sample([s for s in all_sums() if s.is_held_out == held_out], count)


def all_sums() -> Iterator[Sum]:
    """Every sum whose running totals all have a word."""
    changes = [step for step in range(-LARGEST, LARGEST + 1) if step != 0]
    for first in range(1, LARGEST + 1):
        for steps in itertools.product(changes, repeat=STEPS):
            candidate = Sum(first, steps)
            if all(0 <= total < len(NUMBERS) for total in candidate.totals):
                yield candidate


def _step_text(step: int) -> str:
    return f"{'plus' if step > 0 else 'minus'} {NUMBERS[abs(step)]}"


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
