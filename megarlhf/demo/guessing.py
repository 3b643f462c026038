"""A game to learn in several turns: guess a number. ``python -m megarlhf.demo.guessing DIR``.

It writes the demo's model with random weights (``base``), games to warm it up with (``sft.jsonl``), and
the numbers to guess (``games.jsonl``, ``every_number.jsonl``). In most of the games the player counts on
from a number, whatever is heard; the others halve what is left. So the warmed-up model counts, but has
seen the better way; only the reward tells it to prefer that.
``configs/agents/guess.py`` is the environment, ``guess_program.py`` the same as a program.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from megarlhf.demo.reward import final_answer
from megarlhf.demo.task import NUMBERS

QUESTION = "what is it?"
HIDDEN = range(1, 13)
GUESSES = 4
MORE, LESS = "plus", "minus"


def judge(text: str, label: str) -> tuple[bool, str | None]:
    """Whether what was said names the hidden number, and what to hear if it names another one.

    Args:
        text: What the model said.
        label: The hidden number, as a word.
    """
    guess = final_answer(text)
    if guess is None or guess == label:
        return guess == label, None
    return False, MORE if NUMBERS.index(label) > NUMBERS.index(guess) else LESS


def write_task(
    directory: str | Path,
    seed: int,
    *,
    sft_rows: int = 4096,
    games: int = 768,
    halving: float = 0.3,
) -> None:
    """Write the rows, which depend on the arguments alone.

    ``sft.jsonl`` has rows ``{"messages"}``, ``games.jsonl`` and ``every_number.jsonl`` rows
    ``{"question", "label"}``: every number as often, and once.

    Args:
        directory: Where to write; made if need be.
        seed: Of the guesses at random.
        sft_rows: Rows of ``sft.jsonl``.
        games: Rows of ``games.jsonl``.
        halving: Share of ``sft.jsonl`` whose players halve what is left.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    played = [_game(generator, halves=number < halving * sft_rows) for number in range(sft_rows)]
    _write(folder / "sft.jsonl", [{"messages": messages} for messages in played])
    rows = [{"question": QUESTION, "label": NUMBERS[number]} for number in HIDDEN]
    _write(folder / "every_number.jsonl", rows)
    _write(folder / "games.jsonl", [rows[i % len(rows)] for i in range(games)])


def _game(generator: random.Random, *, halves: bool) -> list[dict[str, str]]:
    """A game from a first guess at random, until the number is found or there are no guesses left."""
    hidden, guess = generator.choice(HIDDEN), generator.choice(HIDDEN)
    low, high = HIDDEN[0], HIDDEN[-1]
    messages = [{"role": "user", "content": QUESTION}]
    for _ in range(GUESSES):
        answer = f"it is {NUMBERS[guess]}."
        messages.append({"role": "assistant", "content": answer})
        _, heard = judge(answer, NUMBERS[hidden])
        if heard is None:
            return messages
        messages.append({"role": "user", "content": heard})
        low, high = (guess + 1, high) if heard == MORE else (low, guess - 1)
        guess = (low + high) // 2 if halves else guess % HIDDEN[-1] + 1
    return messages[:-1]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write the task and the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where to write")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    from megarlhf.demo.model import make_model

    write_task(arguments.directory, arguments.seed)
    make_model(arguments.directory / "base", arguments.seed)


if __name__ == "__main__":
    main()
