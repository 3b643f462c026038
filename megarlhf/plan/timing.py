"""How long a step takes: a roofline over what was counted, the pipeline's bubble, a model of decoding.

Every efficiency is a named constant (`Calibration`): these are estimates until somebody measures them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megarlhf.models.spec import ModelSpec
from megarlhf.plan.engines import EngineNeeds, StreamNeeds
from megarlhf.plan.fake_run import RankRun, micro_batches_of
from megarlhf.plan.hardware import Calibration, Gpu
from megarlhf.plan.memory import GENERATE, STREAM, Devices, RoleRun
from megarlhf.plan.meter import Traffic
from megarlhf.plan.roles import SCORE, TRAIN, Role

# What a collective sends over a link, of n ranks and of the largest tensor's bytes: ring algorithms.
_SENT = {
    "allreduce": lambda n: 2 * (n - 1) / n,
    "send": lambda n: 1.0,
    "recv": lambda n: 0.0,  # while another one is sent
}


@dataclass(frozen=True)
class Machines:
    """What a run has to work with."""

    gpu: Gpu
    gpus_per_node: int
    calibration: Calibration


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


def pass_parts(
    role: Role, runs: Mapping[int, RankRun], phase: str, on: Machines, filled: float = 1.0
) -> dict[str, float]:
    """Seconds of all of a role's passes of a phase in a step, by what takes them.

    With sequences shorter than the longest, ``filled`` times as long, there are fewer micro-batches.

    The slowest stage sets the pace of the pipeline; its bubble is the time of the other stages' first
    micro-batch, divided by the chunks a stage (Narayanan et al. 2021, arXiv:2104.04473, section 2.2).
    """
    work = role.work[phase]
    slowest = max(
        (_micro_batch(role, run, phase, on) for run in runs.values()), key=lambda p: sum(p.values())
    )
    count, topology = max(1.0, micro_batches_of(role, work) * filled), role.topology
    parts = {name: seconds * count for name, seconds in slowest.items()}
    if topology.pp > 1:
        parts["bubble"] = sum(slowest.values()) * (topology.pp - 1) / topology.vpp
    if phase == TRAIN:
        once = [_once(role, run, on) for run in runs.values()]
        parts |= max(once, key=lambda p: sum(p.values()))
    return {name: seconds * work.times for name, seconds in parts.items()}


def _micro_batch(role: Role, run: RankRun, phase: str, on: Machines) -> dict[str, float]:
    """Of one micro-batch on a stage; what is done once a step is left out."""
    usage, count, gpu, c = run.passes[phase], run.micro_batches[phase], on.gpu, on.calibration
    peak = gpu.tflops_bf16 * 1e12
    once = _moved_once(run) if phase == TRAIN else 0
    traffic = [found for found in usage.traffic.values() if not _is_once(role, found)]
    return {
        "products": (usage.flops - usage.attention_flops) / (peak * c.products) / count,
        "attention": usage.attention_flops / (peak * c.attention) / count,
        "memory": max(0, usage.moved - once) / (gpu.memory_gb_s * 1e9 * c.memory) / count,
        "communication": sum(transfer_seconds(found, on) for found in traffic) / count,
    }


def _once(role: Role, run: RankRun, on: Machines) -> dict[str, float]:
    """Of an optimizer step: gradients over the replicas, the update, parameters back to them."""
    usage = run.passes[TRAIN]
    replicas = [found for found in usage.traffic.values() if _is_once(role, found)]
    seconds = sum(transfer_seconds(found, on) for found in replicas)
    return {
        "gradient exchange": seconds / 2 if role.config.parallel.overlap else seconds,
        "optimizer": _moved_once(run) / (on.gpu.memory_gb_s * 1e9 * on.calibration.memory),
    }


def _moved_once(run: RankRun) -> int:
    zeroed = run.resting.get("gradients", 0)
    return zeroed + (run.update.moved if run.update is not None else 0)


def _is_once(role: Role, found: Traffic) -> bool:
    """Gradients and parameters: over replicas, and over the pipeline's ends where they are tied."""
    if found.kind.startswith("alltoall") or found.kind in ("send", "recv"):
        return False
    return found.group[-1] - found.group[0] >= role.topology.tp


def transfer_seconds(found: Traffic, on: Machines) -> float:
    """Of all calls of one collective over one group, by the slowest link of it."""
    size = len(found.group)
    nodes = {rank // on.gpus_per_node for rank in found.group}
    gpu, c = on.gpu, on.calibration
    bandwidth = gpu.link_gb_s
    if len(nodes) > 1:  # each rank of it on a node brings its share of the network
        bandwidth = min(bandwidth, gpu.network_gb_s * size / len(nodes))
    share = _SENT.get(found.kind, lambda n: (n - 1) / n)(size)
    return found.nbytes * share / (bandwidth * 1e9 * c.links) + found.calls * c.hop_us * 1e-6


@dataclass(frozen=True)
class Generation:
    """A rollout on the engines.

    Attributes:
        seconds: Of the whole.
        running: Sequences in flight of an engine.
        parts: Seconds by what takes them.
    """

    seconds: float
    running: int
    parts: dict[str, float]


def generation(
    spec: ModelSpec,
    needs: EngineNeeds,
    prompts: int,
    samples: int,
    lengths: tuple[int, int],
    on: Machines,
    active: int,
) -> Generation:
    """A decoding step reads the weights once and every sequence's keys and values.

    Args:
        spec: The model.
        needs: Of a rank of an engine.
        prompts: Of the rollout, over all engines.
        samples: Of each prompt; they share its prefill.
        lengths: Mean tokens of a prompt and of a response.
        on: The machines.
        active: Parameters that a token meets.
    """
    gpu, c = on.gpu, on.calibration
    prompt, response = lengths
    sequences = -(-prompts * samples // needs.count)
    running = max(1, min(sequences, needs.running))
    context = prompt + response / 2
    read = needs.weights * _read_share(spec, running) + running * context * needs.token_bytes
    flops = 2 * active * running / needs.ranks
    step = {
        "decoding": max(
            read / (gpu.memory_gb_s * 1e9 * c.decoding),
            flops / (gpu.tflops_bf16 * 1e12 * c.prefill),
        ),
        "launching": spec.num_layers * c.layer_us * 1e-6,
    }
    if needs.ranks > 1:
        size = running * int(spec.settings["hidden_size"]) * 2
        group = tuple(range(needs.ranks))
        traffic = Traffic(group, "allreduce", 2 * spec.num_layers, 2 * spec.num_layers * size)
        step["communication"] = transfer_seconds(traffic, on)
    steps = response * sequences / running
    parts = {name: seconds * steps for name, seconds in step.items()}
    tokens = -(-prompts // needs.count) * prompt
    parts["prefill"] = 2 * active * tokens / needs.ranks / (gpu.tflops_bf16 * 1e12 * c.prefill)
    return Generation(sum(parts.values()), running, parts)


def _read_share(spec: ModelSpec, running: int) -> float:
    """How much of a mixture's experts a step of several tokens reads; their share of all weights is
    taken to be one."""
    if not spec.num_experts:
        return 1.0
    missed = (1 - int(spec.settings["moe_router_topk"]) / spec.num_experts) ** running
    return 1 - missed


def stream_seconds(stream: StreamNeeds, on: Machines, colocated: bool) -> float:
    """An update: the busiest sender or receiver, over the network where the engines are elsewhere."""
    gpu = on.gpu
    bandwidth = gpu.link_gb_s if colocated else gpu.network_gb_s
    busiest = max(stream.most_sent, stream.most_received)
    return busiest / (bandwidth * 1e9 * on.calibration.links)


def lay_out(
    devices: Sequence[Devices],
    on: Machines,
    generated: Generation | None,
    stream: float,
    mean_tokens: int,
    *,
    ahead: bool = False,
) -> list[Span]:
    """The phases of a step, one after the other; models on GPUs of their own work side by side.

    Args:
        devices: GPUs and the roles on them.
        on: The machines.
        generated: The rollout; None for an offline run.
        stream: Seconds of a weight update.
        mean_tokens: Of a sequence.
        ahead: Whether the engines sample for the next step meanwhile.
    """
    spans: list[Span] = []
    now = 0.0
    if generated is not None:
        where = next((each.name for each in devices if each.engines), "engines")
        spans.append(Span(GENERATE, where, now, generated.seconds, generated.parts))
        now = 0.0 if ahead else generated.seconds
    back: set[str] = set()  # who has been on the GPUs in this step
    for phase in (SCORE, TRAIN):
        ends = [now]
        for each in devices:
            begin = now
            for run in (run for process in each.processes for run in process):
                if phase not in run.role.work:
                    continue
                filled = mean_tokens / run.role.work[phase].tokens
                parts = pass_parts(run.role, run.stages, phase, on, filled)
                if each.is_shared and (len(each.processes) > 1 or run.role.name not in back):
                    parts["offload"] = _turn(run, on)
                back.add(run.role.name)
                seconds = sum(parts.values())
                spans.append(Span(f"{phase} {run.role.name}", each.name, begin, seconds, parts))
                begin += seconds
            ends.append(begin)
        now = max(ends)
    if generated is not None:
        name = next(each.name for each in devices if "actor" in each.name)
        spans.append(Span(STREAM, name, now, stream, {"communication": stream}))
    return spans


def _turn(run: RoleRun, on: Machines) -> float:
    """A model comes from the host's memory and goes back to it."""
    most = max(sum(found.resting.values()) for found in run.stages.values())
    return 2 * most / (on.gpu.host_gb_s * 1e9 * on.calibration.links)
