"""What the engines take of their GPUs' memory, on GPUs of their own or on the trainer's."""

from megarlhf.plan.engines import EngineNeeds, StreamNeeds
from megarlhf.plan.fake_run import BUFFERS
from megarlhf.plan.hardware import GIB, Calibration, Gpu
from megarlhf.plan.places import (
    BUCKETS,
    CACHE,
    ENGINE_WEIGHTS,
    GENERATE,
    OVERHEAD,
    STREAM,
    Place,
    total,
)
from megarlhf.plan.roles import SCORE, TRAIN

FEW_RUNNING = 16  # sequences in flight, below which an engine waits for its memory


def engine_place(
    needs: EngineNeeds, gpu: Gpu, share: float, stream: StreamNeeds, memory: int
) -> Place:
    """The engines' GPUs.

    Args:
        needs: Of a rank.
        gpu: Theirs.
        share: ``rollout.gpu_memory_utilization``: all that vLLM takes.
        stream: What an update needs beside.
        memory: Bytes of each GPU that may be taken.
    """
    # vLLM takes its share by its own wish: only a small cache is tight.
    place = Place("engines", needs.count * needs.ranks, memory, tight=1.0)
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

    As `cluster.device_turns.Colocated` does it: for an update the engine's weights come back when all
    of the trainer but the actor's weights is away, its KV cache when these are away, too. An engine
    that sleeps keeps its context.
    """
    engine = engines.phases[GENERATE]
    asleep = int((calibration.context_gib + calibration.communication_gib) * GIB)
    for place in places:
        rest = place.phases[GENERATE]
        stays = {kind: rest[kind] for kind in (BUFFERS, OVERHEAD) if kind in rest}
        weights = {kind: size for kind, size in rest.items() if kind.endswith("weights")}
        for phase in (SCORE, TRAIN):
            if phase in place.phases:
                place.phases[phase] = total([place.phases[phase], {OVERHEAD: asleep}])
        place.phases[GENERATE] = total([stays, engine])
        place.phases[STREAM] = total(
            [
                stays,
                weights,
                {kind: engine[kind] for kind in (ENGINE_WEIGHTS, OVERHEAD)},
                {BUCKETS: 2 * engines.phases[STREAM][BUCKETS]},
            ]
        )
        place.problem, place.is_tight = engines.problem, engines.is_tight
