"""The demo's reward, written as a user would: ``reward.function=megarlhf/demo/reward.py``."""

import re

from megarlhf.demo.task import NUMBERS

NUMBER = re.compile(rf"\b({'|'.join(NUMBERS)})\b")


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> list[float]:
    """Score responses: 1.0 where the last number named is the right answer, else 0.0.

    Args:
        queries: Prompts with their responses.
        prompts: The prompts alone.
        labels: The right answers, a word each.
    """
    return [
        float(final_answer(query[len(prompt) :]) == label)
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]


def final_answer(response: str) -> str | None:
    """The last number that a response names; None if it names none."""
    found = NUMBER.findall(response)
    return found[-1] if found else None
