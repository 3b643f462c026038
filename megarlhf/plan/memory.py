"""Who of the trainer has how much of a GPU's memory in each phase of a step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megarlhf.cluster.placement import placement_of
from megarlhf.config.schema import OfflineConfig, RLConfig
from megarlhf.plan.engines import StreamNeeds
from megarlhf.plan.fake_run import RankRun
from megarlhf.plan.hardware import GIB, Calibration
from megarlhf.plan.host_memory import bytes_on_host
from megarlhf.plan.layers import distinct_stages
from megarlhf.plan.places import (
    BUCKETS,
    GENERATE,
    OVERHEAD,
    PHASES,
    STREAM,
    Kinds,
    Place,
    total,
)
from megarlhf.plan.roles import SCORE, TRAIN, Role
from megarlhf.plan.usage import ACTIVATIONS, LOGITS


@dataclass(frozen=True)
class RoleRun:
    """A role with what its ranks of some stages were measured to need."""

    role: Role
    stages: Mapping[int, RankRun]


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
    devices: Devices, memory: int, calibration: Calibration, stream: StreamNeeds | None
) -> list[Place]:
    """The trainer's GPUs, by pipeline stage of those that hold them.

    Args:
        devices: GPUs and who is on them.
        memory: Bytes of each that may be taken.
        calibration: Constants.
        stream: Of the actor's weights; None for an offline run.
    """
    places = []
    topology = devices.leader.topology
    for stage in devices.processes[0][0].stages:
        name = _place_name(devices.name, stage, topology.pp)
        stages = distinct_stages(devices.leader)[stage]
        place = Place(name, stages * topology.world // topology.pp, memory)
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
    resting = total(_resting(role, run) for role, run in members)
    phases: dict[str, Kinds] = {}
    for phase in (SCORE, TRAIN):
        active = [_active(role, run, phase, resting) for role, run in members]
        if some := [kinds for kinds in active if kinds]:
            phases[phase] = max(some, key=lambda kinds: sum(kinds.values()))
    if stream is not None:
        phases[GENERATE] = resting
        buckets = {BUCKETS: stream.bucket} if members[0][0].name == "actor" else {}
        phases[STREAM] = total([resting, buckets])
    return phases


def _at(run: RoleRun, stage: int, stages: int) -> RankRun:
    """What is beside a stage: the same one, or of another layout the one that needs most."""
    if run.role.topology.pp == stages:
        return run.stages[stage]
    return max(run.stages.values(), key=lambda found: max(map(_size, _peaks(found))))


def _peaks(run: RankRun) -> list[Kinds]:
    return [run.resting, *(usage.peak for usage in run.passes.values())]


def _size(kinds: Kinds) -> int:
    return sum(kinds.values())


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
    return total([peak, +others])


def _with_overhead(kinds: Kinds, world: int, asleep: int, calibration: Calibration) -> Kinds:
    """With what no tensor shows, of this process and of those that sleep beside it."""
    gib = calibration.context_gib + (calibration.communication_gib if world > 1 else 0.0)
    gib = gib * (1 + asleep) + calibration.workspace_gib
    moving = kinds.get(ACTIVATIONS, 0) + kinds.get(LOGITS, 0)
    return kinds | {OVERHEAD: int(gib * GIB + calibration.fragmentation * moving)}
