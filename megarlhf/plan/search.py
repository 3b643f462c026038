"""Layouts and placements for given GPUs, ranked, each with its reason.

Layouts that cannot hold what stays in memory are left out by counting the layout map's parameters. Of
the others a shallow model is run once for each way of cutting a layer; how deep a stage is and how many
ranks there are is extrapolated. What is best then is planned as any configuration is.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology
from megarlhf.plan.advice import Change, changed
from megarlhf.plan.fake_run import RankRun
from megarlhf.plan.layers import run_stage
from megarlhf.plan.making import Plan, make_plan
from megarlhf.plan.roles import Role
from megarlhf.plan.subject import Subject

SECONDS = 45.0  # of planning
BEST = 8  # that are shown
TRAINED_BYTES = 18  # bf16 weights, fp32 gradients, main parameters and two moments, of each element


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
    candidates = sorted(_candidates(subject), key=lambda change: _burden(subject, change))
    found, tried, run = [], 0, _remembering()
    for change in candidates:
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
    return Result(found[:BEST], tried, len(candidates) - tried)


def _remembering() -> Callable[..., RankRun]:
    """`run_stage`, once for each layout: where the engines are changes nothing for the trainer."""
    known: dict[tuple, RankRun] = {}

    def run(role: Role, stage: int, **options: Any) -> RankRun:
        work = tuple(role.work.items())
        tokens = role.micro_batch_tokens
        key = (role.name, role.spec.path, role.config, role.topology, tokens, work, stage)
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


def _candidates(subject: Subject) -> Iterator[Change]:
    """Every layout that the machines have room for; of RL also who has which GPUs."""
    spec = ModelSpec.read(subject.shape_of(subject.config.model.path))
    for placement in _placements(subject):
        ranks = placement.get("cluster.actor_ranks", subject.gpus)
        for layout in _layouts(subject, spec, ranks):
            change = placement | layout
            if isinstance(subject.config, RLConfig) and "cluster.critic_ranks" in placement:
                own = {k: v for k, v in layout.items() if k.startswith("model.")}
                change |= {f"critic.{k.removeprefix('model.')}": v for k, v in own.items()}
            yield change


def _placements(subject: Subject) -> Iterator[Change]:
    config, gpus = subject.config, subject.gpus
    if not isinstance(config, RLConfig):
        yield {}
        return
    from megarlhf.algo import registry

    critic = registry.find(config.algorithm.name, config.algorithm.file).needs_critic
    for share, tensor in itertools.product((0.25, 0.5), (1, 2, 4, 8)):
        engines = int(gpus * share) // tensor
        rest = gpus - engines * tensor
        if engines and tensor <= subject.gpus_per_node:
            trained = {"cluster.actor_ranks": rest // 2 if critic else rest}
            trained |= {"cluster.critic_ranks": rest // 2} if critic else {}
            yield trained | {
                "rollout.placement": "separate",
                "rollout.engines": engines,
                "rollout.tensor_parallel": tensor,
            }


def _layouts(subject: Subject, spec: ModelSpec, ranks: int) -> Iterator[Change]:
    sizes = [size for size in (1, 2, 4, 8) if size <= subject.gpus_per_node]
    experts = [size for size in (1, 4, 8, 16) if spec.num_experts % size == 0]
    for tensor, pipeline in itertools.product(sizes, (1, 2, 4, 8)):
        for expert in experts if spec.num_experts else (1,):
            replicas, rest = divmod(ranks, tensor * pipeline)
            if rest or not replicas or replicas % expert:
                continue
            if _held(subject, spec, ranks, tensor, pipeline, expert) > subject.gpu.nbytes:
                continue
            for recompute in ("selective", "full"):
                yield {
                    "model.parallel.tensor": tensor,
                    "model.parallel.sequence": tensor > 1,
                    "model.parallel.pipeline": pipeline,
                    "model.parallel.expert": expert,
                    "model.recompute": recompute,
                }


def _held(
    subject: Subject, spec: ModelSpec, ranks: int, tensor: int, pipeline: int, expert: int
) -> float:
    """Bytes that a rank keeps at least: its parameters, from the layout map."""
    try:
        topology = Topology(
            world=ranks, tp=tensor, pp=pipeline, ep=expert, sequence_parallel=tensor > 1
        )
        elements = sum(math.prod(p.shape) for p in parameters_of(spec, topology, 0))
    except (UserError, ValueError):
        return math.inf
    on_host = subject.config.optimizer.offload == "states"
    return elements * (6 + (0 if on_host else (TRAINED_BYTES - 6) / topology.dp))


def _burden(subject: Subject, change: Change) -> tuple[float, ...]:
    """The less is cut the less is sent and waited for, and the less is recomputed."""
    tensor = change["model.parallel.tensor"]
    pipeline = change["model.parallel.pipeline"]
    engine = change.get("rollout.tensor_parallel", 1)
    full = change["model.recompute"] == "full"
    return (
        math.log2(tensor) + 0.7 * math.log2(pipeline) + 0.5 * math.log2(engine) - full,
        change["model.parallel.expert"],
    )
