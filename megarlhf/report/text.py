"""Numbers and durations as a person reads them."""

import math
from typing import Any


def format_number(value: float) -> str:
    """Four significant digits, thousands separated: 0.4123, 12,345, 3.1e-7."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return short_exponent(f"{value:.4g}")


def format_seconds(seconds: float) -> str:
    """Two units at most: 0.42s, 9.1s, 42s, 3m 31s, 2h 05m, 3d 04h."""
    if seconds < 1:
        return f"{seconds:.2f}s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = minutes // 60
    return f"{hours // 24}d {hours % 24:02d}h"


def short_exponent(text: str) -> str:
    """The exponent without padding: 3.1e-07 becomes 3.1e-7."""
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def is_number(value: Any) -> bool:
    """Whether a value of a log is one; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
