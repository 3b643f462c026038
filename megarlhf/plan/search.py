"""Layouts and placements for given GPUs, ranked, each with its reason.

Each candidate is planned as any configuration is; roles that several of them have are run once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megarlhf.errors import UserError
from megarlhf.plan.advice import Change, changed
from megarlhf.plan.candidates import candidates
from megarlhf.plan.fake_run import RankRun
from megarlhf.plan.layers import run_stage
from megarlhf.plan.making import make_plan
from megarlhf.plan.result import Plan
from megarlhf.plan.roles import Role
from megarlhf.plan.subject import Subject

SECONDS = 45.0  # of planning
BEST = 8  # that are shown


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
        tried: How many were planned.
        left: How many were not, for want of time.
    """

    found: list[Found]
    tried: int
    left: int


def search(subject: Subject) -> Result:
    """Plan layouts, the most promising first, for at most about `SECONDS`."""
    end = time.monotonic() + SECONDS
    wanted = candidates(subject)
    found, tried, run = [], 0, _remembering()
    for change in wanted:
        if time.monotonic() > end:
            break
        tried += 1
        try:
            plan = make_plan(changed(subject, change), run)
        except UserError:
            continue
        if plan.verdict != "does not fit":
            found.append(Found(change, plan))
    found.sort(key=lambda one: one.plan.seconds)
    return Result(found[:BEST], tried, len(wanted) - tried)


def _remembering() -> Callable[..., RankRun]:
    """`run_stage`, once for each role: where the engines are changes nothing for the trainer."""
    known: dict[tuple, RankRun] = {}

    def run(role: Role, stage: int, **options: Any) -> RankRun:
        trained = None if role.optimizer is None else (role.name, role.optimizer)
        model = (role.spec.path, role.config, role.topology, role.lora, role.is_borrowed)
        work = (role.micro_batch_tokens, role.averaging, *role.work.items())
        key = (trained, model, work, stage, *options.items())
        if key not in known:
            known[key] = run_stage(role, stage, **options)
        return known[key]

    return run


def search_text(result: Result) -> str:
    """A line for each that fits."""
    left = f", {result.left} more were not (out of time)" if result.left else ""
    lines = [f"{result.tried} layouts were planned{left}; the fastest that fit:"]
    for place, one in enumerate(result.found, 1):
        settings = " ".join(f"{key}={_word(value)}" for key, value in one.change.items())
        speed = f"{one.plan.seconds:.0f} s a step, {one.plan.tokens_a_second:,.0f} tokens/s/GPU"
        lines += [f"{place}. {speed}, {one.plan.verdict}: {one.reason}", f"   {settings}"]
    if not result.found:
        lines.append("none fits: more GPUs, or GPUs with more memory")
    return "\n".join(lines)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
