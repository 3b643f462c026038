"""A role's stage from a flat model: what a search ranks layouts by, before it plans the best of them.

Of all layouts that cut a layer alike one is run: without a pipeline or replicas, with few layers. How
deep a stage is, how many micro-batches are in flight and how many replicas share the optimizer's state
is extrapolated; every stage is taken to be the first one with the output layer besides, which is more
than any of them needs. The exchange of gradients is left out.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megarlhf.plan.batches import dealt
from megarlhf.plan.engines import StreamNeeds
from megarlhf.plan.fake_run import MAIN, OPTIMIZER, RankRun, run_rank
from megarlhf.plan.layers import extended, have_equal_layers, run_stage, shallow
from megarlhf.plan.meter import PASSES
from megarlhf.plan.roles import TRAIN, Role
from megarlhf.plan.usage import ACTIVATIONS

FEWEST = 1  # layers of the smaller of two runs


def estimating() -> Callable[..., RankRun]:
    """In place of `run_stage`; remembers what it ran."""
    known: dict[tuple, tuple[RankRun, RankRun]] = {}

    def run(role: Role, stage: int, *, exact: bool, skew: float = 1.0) -> RankRun:
        if not have_equal_layers(role):
            return run_stage(role, stage, exact=exact, skew=skew)
        flat = _flat(role)
        trained = None if role.optimizer is None else (role.name, role.optimizer)
        model = (flat.spec.path, flat.config, flat.topology, role.lora, role.is_borrowed)
        key = (trained, model, role.micro_batch_tokens, role.averaging, *role.work.items(), skew)
        if key not in known:
            fewer, more = (run_rank(shallow(flat, FEWEST + n), 0, skew=skew) for n in (0, 1))
            known[key] = fewer, more
        return _of_stage(role, flat.topology.dp, *known[key])

    return run


def no_stream(config: Any, actor: Role, *, exact: bool) -> StreamNeeds:
    """In place of `stream_needs`, whose plan takes longer to make than an update takes."""
    return StreamNeeds(2 * config.stream.bucket_mib * 2**20, 0, 0)


def _flat(role: Role) -> Role:
    topology = role.topology
    replicas = -(-topology.ep // topology.cp)  # as few as the experts need
    world = topology.tp * topology.cp * replicas
    flat = replace(topology, world=world, pp=1, vpp=1, chunk_layers=None)
    parallel = replace(role.config.parallel, pipeline=1, virtual_pipeline=1, chunk_layers=None)
    return replace(role, topology=flat, config=replace(role.config, parallel=parallel))


def _of_stage(role: Role, replicas: int, fewer: RankRun, more: RankRun) -> RankRun:
    topology = role.topology
    layers = -(-role.spec.num_layers // topology.pp)
    run = extended(fewer, more, layers - FEWEST)
    share = replicas / topology.dp
    for kinds in (run.resting, *(p for usage in run.passes.values() for p in usage.peaks.values())):
        for kind in {MAIN, OPTIMIZER} & kinds.keys():
            kinds[kind] = round(kinds[kind] * share)
    run = replace(run, host=round(run.host * share))
    if run.update is not None:
        saved = round(run.update.moved * (1 - share))
        run.update.moved -= saved
        run.passes[TRAIN].moved -= saved
    if TRAIN in role.work:
        waiting = min(topology.pp, dealt(role, TRAIN).micro_batches) - 1
        low, high = (each.passes[TRAIN].peaks[PASSES] for each in (fewer, more))
        kept = high.get(ACTIVATIONS, 0) - low.get(ACTIVATIONS, 0)  # of a layer and micro-batch
        peak = run.passes[TRAIN].peaks[PASSES]
        peak[ACTIVATIONS] = peak.get(ACTIVATIONS, 0) + waiting * layers * kept
    return run
