"""A plan: who needs how much of which GPU, whether it fits, and how long a step takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from megarlhf.config.schema import RLConfig
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology
from megarlhf.plan.engines import EngineNeeds, StreamNeeds, engine_needs, stream_needs
from megarlhf.plan.fake_run import RankRun
from megarlhf.plan.layers import distinct_stages, have_equal_layers, run_stage
from megarlhf.plan.memory import (
    Place,
    RoleRun,
    devices_of,
    engine_place,
    training_places,
    with_engines,
)
from megarlhf.plan.roles import TRAIN, Role, roles_of
from megarlhf.plan.subject import Subject
from megarlhf.plan.timing import (
    Generation,
    Machines,
    Span,
    generation,
    lay_out,
    stream_seconds,
)


@dataclass
class Plan:
    """What was found.

    Attributes:
        subject: What was planned.
        places: GPUs by what they hold, and its memory.
        spans: The step's phases in time.
        tokens: Of a step, all sequences together.
        useful_flops: That the mathematics of a step's training asks for, over all ranks.
        engines: Of an RL run.
        stream: Of an RL run.
        generated: Of an RL run.
        notes: What the reader has to know.
    """

    subject: Subject
    places: list[Place]
    spans: list[Span]
    tokens: int
    useful_flops: float
    engines: EngineNeeds | None = None
    stream: StreamNeeds | None = None
    generated: Generation | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst of the places'."""
        order = ("fits", "tight", "does not fit")
        verdicts = [place.verdict for place in self.places]
        if self.missing_gpus > 0:
            verdicts.append("does not fit")
        return max(verdicts, key=order.index)

    @property
    def used_gpus(self) -> int:
        """All that the run takes."""
        return sum(place.gpus for place in self.places)

    @property
    def missing_gpus(self) -> int:
        """More than there are, or 0."""
        return max(0, self.used_gpus - self.subject.gpus)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(span.begin + span.seconds for span in self.spans)

    @property
    def tokens_a_second(self) -> float:
        """A GPU: prompts and responses, of the whole step."""
        return self.tokens / self.seconds / self.used_gpus

    @property
    def mfu(self) -> float:
        """Share of the used GPUs' arithmetic that the step's training needs, over its training time."""
        trained = [span for span in self.spans if span.name.startswith(TRAIN)]
        begin = min(span.begin for span in trained)
        seconds = max(span.begin + span.seconds for span in trained) - begin
        gpus = sum(p.gpus for p in self.places if TRAIN in p.phases)
        return self.useful_flops / (seconds * gpus * self.subject.gpu.tflops_bf16 * 1e12)

    @property
    def bottleneck(self) -> tuple[str, str]:
        """The longest phase and what takes most of it."""
        span = max(self.spans, key=lambda span: span.seconds)
        return span.name, max(span.parts, key=span.parts.__getitem__)


def make_plan(subject: Subject, run: Callable[..., RankRun] = run_stage) -> Plan:
    """Run every role's distinct ranks and put together what they need.

    Args:
        subject: What is planned.
        run: How a role's stage is run: `run_stage`, or what remembers its results.

    Raises:
        UserError: The configuration cannot be planned, or its layout does not go with the model.
    """
    config = subject.config
    roles = roles_of(config, subject.gpus, subject.shape_of)
    runs = [
        RoleRun(
            role,
            {
                stage: run(role, stage, exact=subject.exact, skew=subject.skew)
                for stage in distinct_stages(role)
            },
        )
        for role in roles
    ]
    return assemble(subject, runs)


def assemble(subject: Subject, runs: list[RoleRun]) -> Plan:
    """From what ranks were measured to need to a plan."""
    config, roles = subject.config, [run.role for run in runs]
    on = Machines(subject.gpu, subject.gpus_per_node, subject.calibration)
    devices = devices_of(config, runs)
    engines = stream = generated = None
    seconds, ahead = 0.0, False
    if isinstance(config, RLConfig):
        stream = stream_needs(config, roles[0], exact=subject.exact)
        directory = subject.shape_of(config.model.path)
        engines = engine_needs(config, directory, subject.gpu, subject.calibration)
        rollout = config.rollout
        generated = generation(
            roles[0].spec,
            engines,
            rollout.prompts_per_step,
            rollout.samples_per_prompt,
            subject.lengths,
            on,
            active_parameters(roles[0].spec),
        )
        ahead = rollout.async_steps > 0
        seconds = stream_seconds(stream, on, rollout.placement == "colocated")
    places = []
    beside = None
    if isinstance(config, RLConfig):
        share = config.rollout.gpu_memory_utilization
        beside = engine_place(engines, subject.gpu, share, stream)
    for each in devices:
        own = training_places(each, subject.gpu, subject.calibration, stream)
        if each.engines:
            with_engines(own, beside, subject.calibration)
        places += own
    if beside is not None and not any(each.engines for each in devices):
        places.append(beside)
    spans = lay_out(devices, on, generated, seconds, sum(subject.lengths), ahead=ahead)
    return Plan(
        subject=subject,
        places=places,
        spans=spans,
        tokens=_tokens(subject, roles[0]),
        useful_flops=_useful_flops(subject, roles),
        engines=engines,
        stream=stream,
        generated=generated,
        notes=_notes(subject, roles),
    )


def active_parameters(spec: ModelSpec) -> int:
    """Those that a token meets: of a mixture's experts, as many as it is routed to."""
    total = 0
    for parameter in parameters_of(spec, Topology(1), 0):
        size = 1
        for length in parameter.shape:
            size *= length
        if ".experts." in parameter.name:
            size = size * int(spec.settings["moe_router_topk"]) // spec.num_experts
        if not parameter.name.startswith("embedding."):
            total += size
    return total


def _tokens(subject: Subject, role: Role) -> int:
    return role.work[TRAIN].sequences * role.work[TRAIN].times * sum(subject.lengths)


def _useful_flops(subject: Subject, roles: list[Role]) -> float:
    """6 a parameter and token, and attention's 6 a layer, head width and pair of tokens.

    Recomputing is not counted (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B; causal
    masks counted as half).
    """
    total = 0.0
    for role in roles:
        if TRAIN not in role.work:
            continue
        work, settings, tokens = role.work[TRAIN], role.spec.settings, sum(subject.lengths)
        width = int(settings["num_attention_heads"]) * int(settings["kv_channels"])
        attention = 6 * role.spec.num_layers * width * tokens
        per_token = 6 * active_parameters(role.spec) + attention
        total += per_token * work.sequences * tokens * work.times
    return total


def _notes(subject: Subject, roles: list[Role]) -> list[str]:
    notes = []
    if not subject.exact and all(have_equal_layers(role) for role in roles):
        notes.append(
            "deep stages were run with 2 and 3 layers a chunk and extrapolated; --exact runs all"
        )
    if any(role.spec.num_experts for role in roles):
        notes.append(f"routing is taken to be even, times --skew {subject.skew:g} on this rank")
    notes.append(
        "memory is for the longest sequences; time is for "
        f"{' + '.join(str(length) for length in subject.lengths if length)} tokens a sequence"
    )
    return notes


def as_dict(plan: Plan) -> dict[str, Any]:
    """For ``--json``: bytes and seconds."""
    bottleneck = plan.bottleneck
    return {
        "config": plan.subject.name,
        "gpu": plan.subject.gpu.name,
        "gpus": plan.subject.gpus,
        "used_gpus": plan.used_gpus,
        "verdict": plan.verdict,
        "places": [
            {
                "name": place.name,
                "gpus": place.gpus,
                "memory": place.memory,
                "peak": place.peak,
                "worst_phase": place.worst,
                "verdict": place.verdict,
                "problem": place.problem,
                "phases": place.phases,
                "host": place.host,
            }
            for place in plan.places
        ],
        "engines": None if plan.engines is None else vars(plan.engines),
        "stream": None if plan.stream is None else vars(plan.stream),
        "spans": [vars(span) for span in plan.spans],
        "seconds": plan.seconds,
        "tokens_per_second_per_gpu": plan.tokens_a_second,
        "mfu": plan.mfu,
        "bottleneck": {"phase": bottleneck[0], "what": bottleneck[1]},
        "calibration": vars(plan.subject.calibration),
        "notes": plan.notes,
    }
