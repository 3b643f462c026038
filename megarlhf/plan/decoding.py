"""How long a rollout takes on the engines: a model of decoding."""

from collections import Counter
from dataclasses import dataclass

from megarlhf.models.spec import ModelSpec
from megarlhf.plan.engines import EngineNeeds
from megarlhf.plan.lengths import Lengths
from megarlhf.plan.timing import Machines, transfer_seconds
from megarlhf.plan.usage import Traffic

STRETCHES = 64  # into which the rollout's end is cut


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
    longest: int,
    on: Machines,
    active: int,
) -> Generation:
    """A decoding step reads the weights once and every sequence's keys and values.

    An engine keeps as many sequences in flight as it can while others wait. From then on there are
    fewer and fewer, and the rollout ends with the longest of the slowest engine.

    Args:
        spec: The model.
        needs: Of a rank of an engine.
        prompts: Of the rollout, over all engines.
        samples: Of each prompt; they share its prefill.
        lengths: Mean tokens of a prompt and of a response.
        longest: Tokens of the longest response.
        on: The machines.
        active: Parameters that a token meets.
    """
    prompt, responses = lengths[0], Lengths(lengths[1], longest)
    sequences = -(-prompts * samples // needs.count)
    running = max(1, min(sequences, needs.running))
    parts: Counter[str] = Counter()

    def decode(steps: float, batch: float, context: float) -> None:
        for name, seconds in _step(spec, needs, on, active, batch, context).items():
            parts[name] += steps * seconds

    # While others wait; of those in flight the longer ones are met more often.
    met = prompt + responses.mean_square / (2 * responses.mean)
    decode(responses.mean * (sequences - running) / running, running, met)
    width = longest / STRETCHES
    for number in range(STRETCHES):
        tokens = (number + 0.5) * width
        left = responses.longer_than(tokens)
        goes_on = 1 - (1 - left) ** (running * needs.count)  # that any engine has one left
        if goes_on:
            decode(width * goes_on, max(1.0, running * left / goes_on), prompt + tokens)
    tokens = -(-prompts // needs.count) * prompt
    arithmetic = on.gpu.tflops_bf16 * 1e12 * on.calibration.prefill
    parts["prefill"] = 2 * active * tokens / needs.ranks / arithmetic
    return Generation(sum(parts.values()), running, dict(parts))


def _step(
    spec: ModelSpec, needs: EngineNeeds, on: Machines, active: int, batch: float, context: float
) -> dict[str, float]:
    """Seconds of a decoding step of a batch of sequences with ``context`` tokens each."""
    gpu, c = on.gpu, on.calibration
    read = needs.weights * _read_share(spec, batch) + batch * context * needs.token_bytes
    flops = 2 * active * batch / needs.ranks
    step = {
        "decoding": max(
            read / (gpu.memory_gb_s * 1e9 * c.decoding),
            flops / (gpu.tflops_bf16 * 1e12 * c.prefill),
        ),
        "launching": spec.num_layers * c.layer_us * 1e-6,
    }
    if needs.ranks > 1:
        size = batch * int(spec.settings["hidden_size"]) * 2
        group, calls = tuple(range(needs.ranks)), 2 * spec.num_layers
        traffic = Traffic(group, "allreduce", calls, round(calls * size))
        step["communication"] = transfer_seconds(traffic, on)
    return step


def _read_share(spec: ModelSpec, running: float) -> float:
    """How much of a mixture's experts a step of several tokens reads; their share of all weights is
    taken to be one."""
    if not spec.num_experts:
        return 1.0
    missed = (1 - int(spec.settings["moe_router_topk"]) / spec.num_experts) ** running
    return 1 - missed
