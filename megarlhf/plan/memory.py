"""Who has how much of a GPU's memory in each phase of a step."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from megarlhf.plan.engines import EngineNeeds, StreamNeeds
from megarlhf.plan.fake_run import BUFFERS, RankRun
from megarlhf.plan.hardware import GIB, Calibration, Gpu
from megarlhf.plan.meter import ACTIVATIONS, LOGITS
from megarlhf.plan.roles import SCORE, TRAIN, Role

GENERATE, STREAM = "generate", "stream"
PHASES = (GENERATE, SCORE, TRAIN, STREAM)
OVERHEAD, ENGINE_WEIGHTS, CACHE, BUCKETS = (
    "overhead",
    "engine weights",
    "KV cache",
    "stream buckets",
)
TIGHT = 0.8  # of a GPU's memory
FEW_RUNNING = 16  # sequences in flight, below which an engine waits for its memory

Kinds = dict[str, int]  # bytes by kind


@dataclass(frozen=True)
class RoleRun:
    """A role with what its ranks of some stages were measured to need."""

    role: Role
    stages: Mapping[int, RankRun]


@dataclass
class Place:
    """GPUs that hold the same: those of one pipeline stage, or of the engines.

    Attributes:
        name: Whose they are.
        gpus: How many.
        memory: Of each, bytes.
        phases: Bytes by phase and kind.
        problem: Why it does not do, where memory alone does not say so.
        is_tight: Whether it does only just, for another reason than memory.
    """

    name: str
    gpus: int
    memory: int
    phases: dict[str, Kinds] = field(default_factory=dict)
    problem: str | None = None
    is_tight: bool = False

    @property
    def worst(self) -> str:
        """The phase that sets the peak."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.phases[self.worst].values())

    @property
    def verdict(self) -> str:
        """fits, tight, or does not fit."""
        if self.problem or self.peak > self.memory:
            return "does not fit"
        return "tight" if self.is_tight or self.peak > TIGHT * self.memory else "fits"


def training_places(
    runs: Iterable[RoleRun], gpu: Gpu, calibration: Calibration, stream: StreamNeeds | None
) -> list[Place]:
    """The trainer's GPUs, stage by stage, with memory of their own.

    Args:
        runs: Roles with the same ``ranks`` share GPUs; of those one computes at a time.
        gpu: Theirs.
        calibration: Constants.
        stream: Of the actor's weights; None for an offline run.
    """
    places = []
    for ranks, members in _by_ranks(runs).items():
        leader = members[0].role.topology
        for stage in members[0].stages:
            rank_runs = [(member.role, member.stages[stage]) for member in members]
            resting = _total(_resting(role, run) for role, run in rank_runs)
            place = Place(
                _place_name(ranks, stage, leader.pp), leader.world // leader.pp, gpu.nbytes
            )
            for phase in (SCORE, TRAIN):
                active = [_active(role, run, phase, resting) for role, run in rank_runs]
                if found := [kinds for kinds in active if kinds]:
                    place.phases[phase] = max(found, key=lambda kinds: sum(kinds.values()))
            if stream is not None:
                place.phases[GENERATE] = resting
                buckets = stream.bucket if ranks == "actor" else 0
                place.phases[STREAM] = _total([resting, {BUCKETS: buckets} if buckets else {}])
            for phase, kinds in place.phases.items():
                place.phases[phase] = _with_overhead(kinds, leader.world, calibration)
            place.phases = {p: place.phases[p] for p in PHASES if p in place.phases}
            places.append(place)
    return places


def engine_place(needs: EngineNeeds, gpu: Gpu, share: float, stream: StreamNeeds) -> Place:
    """The engines' GPUs.

    Args:
        needs: Of a rank.
        gpu: Theirs.
        share: ``rollout.gpu_memory_utilization``: all that vLLM takes.
        stream: What an update needs beside.
    """
    place = Place("engines", needs.count * needs.ranks, gpu.nbytes)
    taken = {ENGINE_WEIGHTS: needs.weights, CACHE: max(0, needs.cache)}
    rest = int(gpu.nbytes * share) - sum(taken.values())
    own = taken | {OVERHEAD: max(rest, 0)}
    place.phases = {GENERATE: own, STREAM: own | {BUCKETS: stream.bucket}}
    if needs.running < 1:
        short = needs.token_bytes * needs.longest - needs.cache
        place.problem = f"{short / GIB:.1f} GiB short of a KV cache for one sequence"
    # All but this share is vLLM's by its own wish: only a small cache is tight.
    place.is_tight = needs.running < FEW_RUNNING
    return place


def colocated(places: list[Place], engines: Place, share: float) -> list[Place]:
    """Engines on the actor's GPUs: each has them while the other's memory is away.

    As `cluster.turns.Colocated` does it: for an update the engine's weights come back when gradients and
    optimizer state are away, its KV cache when the trainer's weights are.
    """
    engine = engines.phases[GENERATE]
    for place in places:
        if not place.name.startswith("actor"):
            continue
        rest = place.phases[GENERATE]
        stays = {kind: rest[kind] for kind in (BUFFERS, OVERHEAD) if kind in rest}
        weights = {kind: size for kind, size in rest.items() if kind.endswith("weights")}
        place.phases[GENERATE] = _total([stays, engine])
        place.phases[STREAM] = _total(
            [
                stays,
                weights,
                {kind: engine[kind] for kind in (ENGINE_WEIGHTS, OVERHEAD)},
                {BUCKETS: 2 * engines.phases[STREAM][BUCKETS]},
            ]
        )
        place.problem, place.is_tight = engines.problem, engines.is_tight
    return places


def _by_ranks(runs: Iterable[RoleRun]) -> dict[str, list[RoleRun]]:
    found: dict[str, list[RoleRun]] = {}
    for run in runs:
        found.setdefault(run.role.ranks, []).append(run)
    return found


def _place_name(ranks: str, stage: int, stages: int) -> str:
    if stages == 1:
        return ranks
    if stages > 2 and stage == 1:
        return f"{ranks}, stages 1 to {stages - 2}" if stages > 3 else f"{ranks}, stage 1"
    return f"{ranks}, stage {stage}"


def _resting(role: Role, run: RankRun) -> Kinds:
    return {_kind(role, kind): size for kind, size in run.resting.items() if size}


def _kind(role: Role, kind: str) -> str:
    """A model that is not trained beside one that is has weights of its own name."""
    return f"{role.name} weights" if kind == "weights" and role.name != role.ranks else kind


def _active(role: Role, run: RankRun, phase: str, resting: Kinds) -> Kinds | None:
    """All that lies on the GPU at the peak of a role's pass."""
    if phase not in run.passes:
        return None
    peak = {_kind(role, kind): size for kind, size in run.passes[phase].peak.items()}
    others = Counter(resting)
    others.subtract(_resting(role, run))
    return _total([peak, +others])


def _with_overhead(kinds: Kinds, world: int, calibration: Calibration) -> Kinds:
    gib = calibration.context_gib + calibration.workspace_gib
    gib += calibration.communication_gib if world > 1 else 0.0
    moving = kinds.get(ACTIVATIONS, 0) + kinds.get(LOGITS, 0)
    return kinds | {OVERHEAD: int(gib * GIB + calibration.fragmentation * moving)}


def _total(parts: Iterable[Mapping[str, int]]) -> Kinds:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
