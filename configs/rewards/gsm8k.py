"""A reward for GSM8K: 1 where the number after the last "####" is the reference's, else 0."""

import re

NUMBER = re.compile(r"####\s*(-?[\d,]*\.?\d+)")


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> list[float]:
    """Compare final numbers; labels are GSM8K's worked answers, which end in "#### number"."""
    return [
        float(_is_right(query[len(prompt) :], label))
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]


def _is_right(response: str, label: str) -> bool:
    given = _final_number(response)
    return given is not None and given == _final_number(label)


def _final_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
