"""Who has how much of a GPU's memory in each phase of a step."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from megarlhf.cluster.placement import placement_of
from megarlhf.config.schema import OfflineConfig, RLConfig
from megarlhf.plan.engines import EngineNeeds, StreamNeeds
from megarlhf.plan.fake_run import BUFFERS, RankRun
from megarlhf.plan.hardware import GIB, Calibration, Gpu
from megarlhf.plan.host_memory import bytes_on_host
from megarlhf.plan.layers import distinct_stages
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
        tight: The share of the memory above which it does only just.
        host: Bytes of the host's memory that each of these GPUs' models take at most: optimizer states
            with ``optimizer.offload=states``, and what lies there while others have the GPU.
    """

    name: str
    gpus: int
    memory: int
    phases: dict[str, Kinds] = field(default_factory=dict)
    problem: str | None = None
    is_tight: bool = False
    tight: float = TIGHT
    host: int = 0

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
        return "tight" if self.is_tight or self.peak > self.tight * self.memory else "fits"


@dataclass(frozen=True)
class Devices:
    """GPUs and the processes that share them: of each as many ranks as there are GPUs, or fewer.

    Attributes:
        name: For people.
        processes: The roles in each process; the one with most ranks first.
        engines: Whether engines share them, too.
    """

    name: str
    processes: tuple[tuple[RoleRun, ...], ...]
    engines: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether who does not compute puts its memory away."""
        return self.engines or len(self.processes) > 1

    @property
    def leader(self) -> Role:
        """Of the ranks that hold the GPUs."""
        return self.processes[0][0].role


def devices_of(config: RLConfig | OfflineConfig, runs: Sequence[RoleRun]) -> list[Devices]:
    """Who shares GPUs, by the run's own placement."""
    processes: dict[str, tuple[RoleRun, ...]] = {}
    for run in runs:
        processes[run.role.ranks] = (*processes.get(run.role.ranks, ()), run)
    if not isinstance(config, RLConfig):
        return [Devices(name, (members,)) for name, members in processes.items()]
    kinds = [name.split()[0] for name in processes]
    return [
        Devices(
            " + ".join(role.name for role in gang.roles),
            tuple(processes[role.name] for role in gang.roles),
            gang.engines,
        )
        for gang in placement_of(config, kinds).gangs
    ]


def training_places(
    devices: Devices, gpu: Gpu, calibration: Calibration, stream: StreamNeeds | None
) -> list[Place]:
    """The trainer's GPUs, by pipeline stage of those that hold them.

    Args:
        devices: GPUs and who is on them.
        gpu: Theirs.
        calibration: Constants.
        stream: Of the actor's weights; None for an offline run.
    """
    places = []
    topology = devices.leader.topology
    for stage in devices.processes[0][0].stages:
        name = _place_name(devices.name, stage, topology.pp)
        stages = distinct_stages(devices.leader)[stage]
        place = Place(name, stages * topology.world // topology.pp, gpu.nbytes)
        found: dict[str, list[Kinds]] = {}
        asleep = len(devices.processes) - 1
        for process in devices.processes:
            of_stage = [(run.role, _at(run, stage, topology.pp)) for run in process]
            for phase, kinds in _of_process(of_stage, stream).items():
                whole = _with_overhead(kinds, process[0].role.topology.world, asleep, calibration)
                found.setdefault(phase, []).append(whole)
        largest = {
            phase: max(some, key=lambda kinds: sum(kinds.values())) for phase, some in found.items()
        }
        place.phases = {phase: largest[phase] for phase in PHASES if phase in largest}
        runs = [[_at(run, stage, topology.pp) for run in process] for process in devices.processes]
        place.host = bytes_on_host(runs, shared=devices.is_shared, engines=devices.engines)
        places.append(place)
    return places


def _of_process(
    members: list[tuple[Role, RankRun]], stream: StreamNeeds | None
) -> dict[str, Kinds]:
    """By phase: one model of the process computes, the others keep what they have."""
    resting = _total(_resting(role, run) for role, run in members)
    phases: dict[str, Kinds] = {}
    for phase in (SCORE, TRAIN):
        active = [_active(role, run, phase, resting) for role, run in members]
        if some := [kinds for kinds in active if kinds]:
            phases[phase] = max(some, key=lambda kinds: sum(kinds.values()))
    if stream is not None:
        phases[GENERATE] = resting
        buckets = {BUCKETS: stream.bucket} if members[0][0].name == "actor" else {}
        phases[STREAM] = _total([resting, buckets])
    return phases


def _at(run: RoleRun, stage: int, stages: int) -> RankRun:
    """What is beside a stage: the same one, or of another layout the one that needs most."""
    if run.role.topology.pp == stages:
        return run.stages[stage]
    return max(run.stages.values(), key=lambda found: sum(found.resting.values()))


def engine_place(needs: EngineNeeds, gpu: Gpu, share: float, stream: StreamNeeds) -> Place:
    """The engines' GPUs.

    Args:
        needs: Of a rank.
        gpu: Theirs.
        share: ``rollout.gpu_memory_utilization``: all that vLLM takes.
        stream: What an update needs beside.
    """
    # vLLM takes its share by its own wish: only a small cache is tight.
    place = Place("engines", needs.count * needs.ranks, gpu.nbytes, tight=1.0)
    taken = {ENGINE_WEIGHTS: needs.weights, CACHE: max(0, needs.cache)}
    rest = int(gpu.nbytes * share) - sum(taken.values())
    own = taken | {OVERHEAD: max(rest, 0)}
    place.phases = {GENERATE: own, STREAM: own | {BUCKETS: stream.bucket}}
    if needs.running < 1:
        short = needs.token_bytes * needs.longest - needs.cache
        place.problem = f"{short / GIB:.1f} GiB short of a KV cache for one sequence"
    place.is_tight = needs.running < FEW_RUNNING
    return place


def with_engines(places: list[Place], engines: Place, calibration: Calibration) -> None:
    """Engines on the trainer's GPUs: each has them while the other's memory is away.

    As `cluster.turns.Colocated` does it: for an update the engine's weights come back when all of the
    trainer but the actor's weights is away, its KV cache when these are away, too. An engine that
    sleeps keeps its context.
    """
    engine = engines.phases[GENERATE]
    asleep = int((calibration.context_gib + calibration.communication_gib) * GIB)
    for place in places:
        rest = place.phases[GENERATE]
        stays = {kind: rest[kind] for kind in (BUFFERS, OVERHEAD) if kind in rest}
        weights = {kind: size for kind, size in rest.items() if kind.endswith("weights")}
        for phase in (SCORE, TRAIN):
            if phase in place.phases:
                place.phases[phase] = _total([place.phases[phase], {OVERHEAD: asleep}])
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


def _with_overhead(kinds: Kinds, world: int, asleep: int, calibration: Calibration) -> Kinds:
    """With what no tensor shows, of this process and of those that sleep beside it."""
    gib = calibration.context_gib + (calibration.communication_gib if world > 1 else 0.0)
    gib = gib * (1 + asleep) + calibration.workspace_gib
    moving = kinds.get(ACTIVATIONS, 0) + kinds.get(LOGITS, 0)
    return kinds | {OVERHEAD: int(gib * GIB + calibration.fragmentation * moving)}


def _total(parts: Iterable[Mapping[str, int]]) -> Kinds:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
