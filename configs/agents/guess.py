"""An agent: guess a number in four turns. ``megarlhf rl agent.file=configs/agents/guess.py ...``.

The model names a number, and hears whether the hidden one is more or less. The label of a row is the
hidden number as a word. ``python -m megarlhf.demo.guessing`` makes rows and a model.
"""

from typing import Any

from megarlhf.agents.messages import Action
from megarlhf.demo.reward import final_answer
from megarlhf.demo.task import NUMBERS

GUESSES = 4
MORE, LESS = "plus", "minus"


class Agent:
    """One game. Neither method waits for anything, so ``async`` saves the threads."""

    async def reset(self, prompt: str, label: str) -> str:
        """Begin with the row's own prompt."""
        self.hidden = NUMBERS.index(label)
        return prompt

    async def step(self, action: Action) -> dict[str, Any]:
        """Judge a guess."""
        word = final_answer(action.text)
        guess = None if word is None else NUMBERS.index(word)
        found = guess == self.hidden
        if found or guess is None or action.turn == GUESSES:
            return {"reward": float(found), "done": True, "extra_logs": {"guesses": action.turn}}
        return {"observation": MORE if self.hidden > guess else LESS, "reward": 0.0, "done": False}
