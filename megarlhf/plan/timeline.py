"""The phases of a step, laid out in time as the placement runs them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megarlhf.plan.memory import Devices, RoleRun
from megarlhf.plan.places import GENERATE, STREAM
from megarlhf.plan.roles import SCORE, TRAIN
from megarlhf.plan.sampling import Sampling
from megarlhf.plan.timing import Machines, pass_parts


@dataclass
class Span:
    """A stretch of a step.

    Attributes:
        name: Of the phase.
        where: Whose GPUs.
        begin: Seconds from the step's beginning.
        seconds: Its length.
        parts: Seconds by what takes them.
    """

    name: str
    where: str
    begin: float
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)


def lay_out(
    devices: Sequence[Devices], on: Machines, sampling: Sampling | None, lengths: tuple[int, int]
) -> list[Span]:
    """The phases of a step, one after the other; models on GPUs of their own work side by side.

    Args:
        devices: GPUs and the roles on them.
        on: The machines.
        sampling: The engines; None for an offline run.
        lengths: Mean tokens of a prompt and of a response.
    """
    spans: list[Span] = []
    now = 0.0
    if sampling is not None:
        where = next((each.name for each in devices if each.engines), "engines")
        generated = sampling.generated
        spans.append(Span(GENERATE, where, now, generated.seconds, generated.parts))
        now = 0.0 if sampling.ahead else generated.seconds
    back: set[str] = set()  # who has been on the GPUs in this step
    for phase in (SCORE, TRAIN):
        together = [_in_turn(each, phase, now, on, lengths, back) for each in devices]
        spans += [span for row in together for span in row]
        now = max([now, *(row[-1].begin + row[-1].seconds for row in together if row)])
    if sampling is not None:
        name = next(each.name for each in devices if "actor" in each.name)
        seconds = sampling.update_seconds
        spans.append(Span(STREAM, name, now, seconds, {"communication": seconds}))
    return spans


def _in_turn(
    each: Devices,
    phase: str,
    begin: float,
    on: Machines,
    lengths: tuple[int, int],
    back: set[str],
) -> list[Span]:
    """The passes of a phase on some GPUs, one role after the other, each brought back first."""
    spans = []
    for run in (run for process in each.processes for run in process):
        if phase not in run.role.work:
            continue
        parts = pass_parts(run.role, run.stages, phase, on, lengths)
        if each.is_shared and (len(each.processes) > 1 or run.role.name not in back):
            parts["offload"] = _turn(run, on)
        back.add(run.role.name)
        seconds = sum(parts.values())
        spans.append(Span(f"{phase} {run.role.name}", each.name, begin, seconds, parts))
        begin += seconds
    return spans


def _turn(run: RoleRun, on: Machines) -> float:
    """A model comes from the host's memory and goes back to it."""
    most = max(sum(found.resting.values()) for found in run.stages.values())
    return 2 * most / (on.gpu.host_gb_s * 1e9 * on.calibration.links)
