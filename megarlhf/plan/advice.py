"""The smallest change that makes a run fit."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megarlhf.config.schema import OfflineConfig, RLConfig
from megarlhf.errors import UserError
from megarlhf.plan.engines import engine_needs
from megarlhf.plan.hardware import GIB
from megarlhf.plan.layers import run_stage
from megarlhf.plan.memory import Devices, RoleRun, training_places
from megarlhf.plan.places import GENERATE, Place
from megarlhf.plan.result import Plan
from megarlhf.plan.run_roles import roles_of
from megarlhf.plan.subject import Subject

SECTIONS = {"actor": "model", "model": "model", "critic": "critic"}
STATES = {"model": "optimizer.offload", "critic": "critic.optimizer.offload"}
Change = dict[str, Any]  # values by dotted key


def advice(plan: Plan) -> list[str]:
    """A line for each group of GPUs that is not enough: what would do, or how much is missing."""
    lines, seen = [], set()
    for place in plan.places:
        owner = place.name.split(",")[0].split(" + ")[0]
        if place.verdict != "does not fit" or owner in seen:
            continue
        seen.add(owner)
        lines.append(f"{owner}: {_for_place(plan.subject, owner, place)}")
    return lines


def _for_place(subject: Subject, owner: str, place: Place) -> str:
    short = (place.peak - place.memory) / GIB
    if place.worst == GENERATE and (less := _less_for_engines(subject, place)):
        return less
    if owner == "engines" or place.problem:
        return _for_engines(subject)
    least, beside = short, max(0, place.peak - _peak(subject, owner))
    for change in _changes(subject, owner):
        try:
            peak = _peak(changed(subject, change), owner) + beside
        except UserError:
            continue  # this layout does not go with the model
        if peak <= place.memory:
            wording = " ".join(f"{key}={_word(value)}" for key, value in change.items())
            return f"{wording} makes it fit ({peak / GIB:.1f} GiB)"
        least = min(least, (peak - place.memory) / GIB)
    return f"{short:.1f} GiB too much; {least:.1f} GiB with every change of layout tried: more GPUs"


def _less_for_engines(subject: Subject, place: Place) -> str | None:
    """Engines that take a smaller share of their GPUs, if they hold a sequence then."""
    config = subject.config
    assert isinstance(config, RLConfig)
    missing = (place.peak - place.memory) / subject.gpu.nbytes
    share = math.floor(100 * (config.rollout.gpu_memory_utilization - missing)) / 100
    if share <= 0:
        return None
    smaller: Any = changed(subject, {"rollout.gpu_memory_utilization": share}).config
    directory = subject.shape_of(config.model.path)
    needs = engine_needs(smaller, directory, subject.gpu, subject.calibration)
    if not needs.running:
        return None
    return f"rollout.gpu_memory_utilization={share} makes it fit, with {needs.running} sequences"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _for_engines(subject: Subject) -> str:
    assert isinstance(subject.config, RLConfig)
    ranks = subject.config.rollout.tensor_parallel
    while ranks < 8:
        ranks *= 2
        larger = changed(subject, {"rollout.tensor_parallel": ranks})
        directory = subject.shape_of(subject.config.model.path)
        try:
            needs = engine_needs(larger.config, directory, subject.gpu, subject.calibration)
        except UserError:
            continue
        if needs.running:
            return f"rollout.tensor_parallel={ranks} makes room for {needs.running} sequences"
    return "no engine of up to 8 ranks holds a sequence: raise rollout.gpu_memory_utilization"


def _changes(subject: Subject, owner: str) -> Iterator[Change]:
    """From small to large: fewer tokens at a time, recomputing, other layouts, states on the host."""
    section = SECTIONS.get(owner)
    config = subject.config
    longest = longest_sequence(config)
    if config.train.micro_batch_tokens > longest:
        yield {"train.micro_batch_tokens": longest}
    if section is None:
        return
    model = getattr(config, section)
    parallel, base = model.parallel, {}
    if parallel.tensor > 1 and not parallel.sequence:
        base = {f"{section}.parallel.sequence": True}
        yield base
    for recompute in ("selective", "full"):
        if model.recompute != "full" and recompute != model.recompute:
            yield base | {f"{section}.recompute": recompute}
    base |= {f"{section}.recompute": "full", "train.micro_batch_tokens": longest}
    for tensor in (parallel.tensor, parallel.tensor * 2, parallel.tensor * 4):
        for pipeline in (parallel.pipeline, parallel.pipeline * 2, parallel.pipeline * 4):
            if tensor <= subject.gpus_per_node:
                yield base | {
                    f"{section}.parallel.tensor": tensor,
                    f"{section}.parallel.sequence": tensor > 1,
                    f"{section}.parallel.pipeline": pipeline,
                }
    yield base | {STATES[section]: "states"}


def longest_sequence(config: RLConfig | OfflineConfig) -> int:
    """Tokens that a micro-batch holds at least: of the longest sequence, or of a row of them."""
    if isinstance(config, RLConfig):
        return config.data.max_prompt_tokens + config.rollout.max_new_tokens
    return config.data.max_tokens * config.data.sequences_per_row


def changed(subject: Subject, change: Change) -> Subject:
    """With other values of some settings."""
    config = subject.config
    for key, value in change.items():
        config = _with(config, key.split("."), value)
    return replace(subject, config=config)


def _with(config: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(config, **{name: _with(getattr(config, name), rest, value) if rest else value})


def _peak(subject: Subject, owner: str) -> int:
    """Of the first stage, which holds most in flight."""
    roles = [
        role
        for role in roles_of(subject.config, subject.gpus, subject.shape_of)
        if role.ranks == owner
    ]
    runs = tuple(RoleRun(role, {0: run_stage(role, 0, exact=False)}) for role in roles)
    devices = Devices(owner, (runs,))
    (place,) = training_places(devices, subject.memory, subject.calibration, None)
    return place.peak
