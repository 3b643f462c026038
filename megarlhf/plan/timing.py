"""How long a role's passes take: a roofline over what was counted, and the pipeline's bubble.

Every efficiency is a named constant (`Calibration`): these are estimates until somebody measures them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megarlhf.plan.batches import dealt
from megarlhf.plan.engines import StreamNeeds
from megarlhf.plan.fake_run import RankRun
from megarlhf.plan.hardware import Calibration, Gpu
from megarlhf.plan.lengths import Lengths
from megarlhf.plan.roles import TRAIN, Role, Work
from megarlhf.plan.usage import Traffic

# What a collective sends over a link, of n ranks and of the largest tensor's bytes: ring algorithms.
_SENT = {
    "allreduce": lambda n: 2 * (n - 1) / n,
    "send": lambda n: 1.0,
    "recv": lambda n: 0.0,  # while another one is sent
}


# Of an element with ``optimizer.offload=states``: a main parameter and two moments in fp32; a gradient
# (fp32) that comes down and a weight (bf16) that goes up; what Adam reads and writes on the host.
STATE_BYTES, SENT_BYTES, HOST_BYTES = 12, 6, 28


@dataclass(frozen=True)
class Machines:
    """What a run has to work with."""

    gpu: Gpu
    gpus_per_node: int
    calibration: Calibration


def pass_parts(
    role: Role,
    runs: Mapping[int, RankRun],
    phase: str,
    on: Machines,
    lengths: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Seconds of all of a role's passes of a phase in a step, by what takes them.

    Full micro-batches were run: there are as many as all tokens of the step fill. ``lengths`` are the
    mean ones of prompts and responses, where they are not the longest.

    The slowest stage sets the pace of the pipeline; its bubble is the time of the other stages' first
    micro-batch, divided by the chunks a stage (Narayanan et al. 2021, arXiv:2104.04473, section 2.2).
    """
    work = role.work[phase]
    slowest = max(
        (_micro_batch(role, run, phase, on) for run in runs.values()), key=lambda p: sum(p.values())
    )
    tokens = dealt(role, phase, lengths).tokens
    count, topology = max(1.0, tokens / dealt(role, phase).full_tokens), role.topology
    parts = {name: seconds * count for name, seconds in slowest.items()}
    if lengths is not None:
        parts["attention"] *= _attention_share(work, lengths)
    if topology.pp > 1:
        parts["bubble"] = sum(slowest.values()) * (topology.pp - 1) / topology.vpp
    if phase == TRAIN:
        once = [_once(role, run, on) for run in runs.values()]
        parts |= max(once, key=lambda p: sum(p.values()))
    return {name: seconds * work.times for name, seconds in parts.items()}


def _attention_share(work: Work, lengths: tuple[int, int]) -> float:
    """Attention's operations a token, of those in the longest sequences: they grow with the length."""
    prompt, mean = lengths if work.trained is not None else (0, sum(lengths))
    spread = Lengths(mean, work.tokens - prompt)
    squares = prompt**2 + 2 * prompt * spread.mean + spread.mean_square
    return min(1.0, squares / ((prompt + mean) * work.tokens))


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
    moved = 2 * run.resting.get("gradients", 0) if run.host else _moved_once(run)
    parts = {
        "gradient exchange": seconds / 2 if role.config.parallel.overlap else seconds,
        "optimizer": moved / (on.gpu.memory_gb_s * 1e9 * on.calibration.memory),
    }
    return parts | ({"Adam on the host": _on_host(run, on)} if run.host else {})


def _on_host(run: RankRun, on: Machines) -> float:
    """Pieces come down, are computed and go up at the same time: the slower of both sets the pace."""
    elements = run.host / STATE_BYTES
    link = on.gpu.host_gb_s * 1e9 * on.calibration.links
    return max(
        elements * SENT_BYTES / link,
        elements * HOST_BYTES / (on.calibration.host_adam_gb_s * 1e9),
    )


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


def stream_seconds(stream: StreamNeeds, on: Machines, colocated: bool) -> float:
    """An update: the busiest sender or receiver, over the network where the engines are elsewhere."""
    gpu = on.gpu
    bandwidth = gpu.link_gb_s if colocated else gpu.network_gb_s
    busiest = max(stream.most_sent, stream.most_received) / bandwidth
    return (busiest + stream.from_host / gpu.host_gb_s) / (1e9 * on.calibration.links)
