"""An agent: guess a number in four turns. ``megarlhf rl agent.file=configs/agents/guess.py ...``.

The model names a number, and hears whether the hidden one is more or less. The label of a row is the
hidden number as a word. ``python -m megarlhf.demo.guessing`` makes rows and a model.
"""

from typing import Any

from megarlhf.agents.messages import Action
from megarlhf.demo.guessing import GUESSES, judge


class Agent:
    """One game. The method waits for nothing, so ``async`` saves a thread."""

    async def step(self, action: Action) -> dict[str, Any]:
        """Judge a guess."""
        found, heard = judge(action.text, action.label)
        if heard is None or action.turn == GUESSES:
            return {"reward": float(found), "done": True, "extra_logs": {"guesses": action.turn}}
        return {"observation": heard, "reward": 0.0, "done": False}
