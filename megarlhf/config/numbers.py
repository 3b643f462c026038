"""Divisors, and choices in words: what a message proposes."""

from collections.abc import Iterable


def divisors(numbers: Iterable[int], most: int) -> list[int]:
    """The common divisors of ``numbers`` up to ``most``."""
    numbers = list(numbers)
    return [d for d in range(1, most + 1) if all(number % d == 0 for number in numbers)]


def nearest_divisors(number: int, wanted: int) -> list[int]:
    """The divisors of ``number`` next to ``wanted``, below and above."""
    all_of_them = divisors([number], number)
    below = [divisor for divisor in all_of_them if divisor < wanted]
    above = [divisor for divisor in all_of_them if divisor > wanted]
    return below[-1:] + above[:1]


def any_of(choices: list[int]) -> str:
    """``1, 2 or 4``."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last
