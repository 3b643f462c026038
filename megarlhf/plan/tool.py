"""``megarlhf plan``."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from megarlhf.plan.hardware import calibrated
from megarlhf.plan.subject import Subject, read_subject


@dataclass(frozen=True)
class Settings:
    """The command's options.

    Attributes:
        config: The run's YAML file.
        overrides: ``key=value``.
        method: See `config_class`.
        model_config: Directory of ``config.json``, in place of ``model.path``.
        prompt_tokens: Mean, for the time; None: the longest.
        response_tokens: Mean, for the time; None: the longest.
        calibrate: ``name=value``, see `Calibration`.
        skew: See `Received`.
        memory: GiB of each GPU that the run may take; None: all of them.
        exact: Run all layers.
        search: Look for better layouts.
        json: Write the plan here.
        html: Write a page here.
    """

    config: Path | None
    overrides: tuple[str, ...] = ()
    method: str | None = None
    model_config: Path | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    calibrate: tuple[str, ...] = ()
    skew: float = 1.0
    memory: float | None = None
    exact: bool = False
    search: bool = False
    json: Path | None = None
    html: Path | None = None


DOES_NOT_FIT = 4


def run_plan(settings: Settings) -> int:
    """Plan and print; the exit status is 4 where the run does not fit.

    Raises:
        UserError: See `read_subject`.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # fakes are on the CPU, whatever there is
    logging.disable(logging.WARNING)  # of Megatron's, about generators without contents
    subject = subject_of(settings)
    if settings.search:
        from megarlhf.plan.search import search, search_text

        print(search_text(search(subject)))
        return 0
    from megarlhf.plan.advice import advice
    from megarlhf.plan.making import make_plan
    from megarlhf.plan.result import as_dict
    from megarlhf.plan.table import as_text

    plan = make_plan(subject)
    print(as_text(plan))
    hints = advice(plan)
    for line in hints:
        print(line)
    if settings.json:
        settings.json.write_text(json.dumps(as_dict(plan) | {"advice": hints}, indent=2) + "\n")
    if settings.html:
        from megarlhf.plan.page import write_page

        write_page(plan, hints, settings.html)
    return DOES_NOT_FIT if plan.verdict == "does not fit" else 0


def subject_of(settings: Settings) -> Subject:
    """What the options name."""
    return read_subject(
        settings.config,
        settings.overrides,
        calibration=calibrated(settings.calibrate),
        method=settings.method,
        models=settings.model_config,
        lengths=(settings.prompt_tokens, settings.response_tokens),
        skew=settings.skew,
        limit_gib=settings.memory,
        exact=settings.exact,
    )
