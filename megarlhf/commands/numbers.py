"""Numbers among a command's options."""

import argparse
import math
from typing import Any


def _number(kind: type, text: str, in_words: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {in_words}, got {text!r}") from None


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    number = _number(int, text, "a whole number")
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def positive_number(text: str) -> float:
    """A finite one: nothing exceeds a tolerance that is NaN."""
    number = _number(float, text, "a number")
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be greater than 0, and finite")
    return number
