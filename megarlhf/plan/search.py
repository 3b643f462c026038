"""Layouts and placements for given GPUs, ranked, each with its reason.

All candidates are estimated (`estimate`), the best of them planned as any configuration is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megarlhf.errors import UserError
from megarlhf.plan.advice import Change, changed
from megarlhf.plan.candidates import candidates
from megarlhf.plan.estimate import estimating, no_stream
from megarlhf.plan.making import make_plan
from megarlhf.plan.result import Plan
from megarlhf.plan.subject import Subject

SECONDS, ESTIMATING = 50.0, 0.8  # in all, and the share of it in which layouts are estimated
BEST = 5  # that are shown


@dataclass(frozen=True)
class Found:
    """A change of the configuration, and the plan with it."""

    change: Change
    plan: Plan

    @property
    def reason(self) -> str:
        """What it is good at, and what it waits for."""
        phase, what = self.plan.bottleneck
        tightest = max(self.plan.places, key=lambda place: place.peak / place.memory)
        share = tightest.peak / tightest.memory
        return f"{tightest.name} {share:.0%} full; most time in {phase} ({what})"


@dataclass(frozen=True)
class Result:
    """What a search found, the best first.

    Attributes:
        found: What fits.
        estimated: How many layouts were estimated.
        left: How many were not, for want of time.
        planned: How many of the best were planned.
    """

    found: list[Found]
    estimated: int
    left: int
    planned: int


def search(subject: Subject) -> Result:
    """Estimate layouts and plan the best of them, for at most about `SECONDS`.

    The configuration as it is comes first, so that nothing worse is proposed.
    """
    begin = time.monotonic()
    own = _planned(subject, {})
    found = [] if own is None else [Found({}, own)]
    wanted, run = candidates(subject), estimating()
    estimates, count = [], 0
    for change in wanted:
        if time.monotonic() > begin + ESTIMATING * SECONDS:
            break
        count += 1
        plan = _planned(subject, change, run, no_stream)
        if plan is not None:
            estimates.append((plan.seconds, len(estimates), change))
    planned = 0
    for _, _, change in sorted(estimates):
        if len(found) == BEST or (planned and time.monotonic() > begin + SECONDS):
            break
        planned += 1
        plan = _planned(subject, change)
        if plan is not None:
            found.append(Found(change, plan))
    found.sort(key=lambda one: one.plan.seconds)
    return Result(found, count, len(wanted) - count, planned)


def _planned(subject: Subject, change: Change, *how: Callable[..., Any]) -> Plan | None:
    """With a change; None where it does not fit or does not go with the model."""
    try:
        plan = make_plan(changed(subject, change), *how)
    except UserError:
        return None
    return None if plan.verdict == "does not fit" else plan


def search_text(result: Result) -> str:
    """A line for each that fits."""
    left = f" ({result.left} more were not: out of time)" if result.left else ""
    lines = [
        f"{result.estimated} layouts were estimated{left}, the best {result.planned} planned; "
        "the fastest that fit:"
    ]
    for place, one in enumerate(result.found, 1):
        settings = " ".join(f"{key}={_word(value)}" for key, value in one.change.items())
        speed = f"{one.plan.seconds:.0f} s a step, {one.plan.tokens_a_second:,.0f} tokens/s/GPU"
        lines += [f"{place}. {speed}, {one.plan.verdict}: {one.reason}"]
        lines += [f"   {settings or 'the configuration as it is'}"]
    if not result.found:
        lines.append(
            "none of those fits; a faster machine would reach the others"
            if result.left
            else "none fits: more GPUs, or GPUs with more memory"
        )
    return "\n".join(lines)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
