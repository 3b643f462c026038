"""How long a rollout takes on the engines: a model of decoding."""

from dataclasses import dataclass

from megarlhf.models.spec import ModelSpec
from megarlhf.plan.engines import EngineNeeds
from megarlhf.plan.timing import Machines, transfer_seconds
from megarlhf.plan.usage import Traffic


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
