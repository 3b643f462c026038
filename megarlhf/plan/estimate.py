"""A role's stage from a flat model: what a search ranks layouts by, before it plans the best of them.

Of all layouts that cut a layer alike one is run: without a pipeline or replicas, with few layers and
few experts a rank. How deep a stage is, how many experts a rank has, how many micro-batches are in
flight and how many replicas share the optimizer's state is extrapolated; every stage is taken to be the
first one with the output layer besides, which is more than any of them needs. The exchange of gradients
is left out.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megarlhf.algo.distillation_loss import DistillationLoss
from megarlhf.plan.batches import dealt
from megarlhf.plan.engines import StreamNeeds
from megarlhf.plan.equal_layers import have_equal_layers
from megarlhf.plan.fake_run import MAIN, OPTIMIZER, RankRun, run_rank
from megarlhf.plan.layers import extended, run_stage, shallow
from megarlhf.plan.meter import PASSES
from megarlhf.plan.roles import TRAIN, Role
from megarlhf.plan.usage import ACTIVATIONS

FEWEST = 1  # layers of the smaller of two runs
FEWEST_EXPERTS = 2  # the same of a rank's experts: with a single one there is nothing to sort


def estimating() -> Callable[..., RankRun]:
    """In place of `run_stage`; remembers what it ran."""
    known: dict[tuple, tuple[RankRun, RankRun]] = {}

    def run(role: Role, stage: int, *, exact: bool, skew: float = 1.0) -> RankRun:
        if not have_equal_layers(role.spec) or _distils(role):
            return run_stage(role, stage, exact=exact, skew=skew)
        flat = _flat(role)
        trained = None if role.optimizer is None else (role.name, role.optimizer)
        model = (flat.spec.path, flat.config, flat.topology, role.lora, role.is_borrowed)
        key = (trained, model, role.micro_batch_tokens, role.averaging, *role.work.items(), skew)
        if key not in known:
            fewer, more = (_run_few(shallow(flat, FEWEST + n), skew) for n in (0, 1))
            known[key] = fewer, more
        return _of_stage(role, flat.topology.dp, *known[key])

    return run


def no_stream(config: Any, actor: Role, *, exact: bool) -> StreamNeeds:
    """In place of `stream_needs`, whose plan takes longer to make than an update takes."""
    return StreamNeeds(2 * config.stream.bucket_mib * 2**20, 0, 0)


def _distils(role: Role) -> bool:
    """Whether what is kept grows with a rank's share of the batch."""
    return role.student is not None or isinstance(role.loss, DistillationLoss)


def _run_few(role: Role, skew: float) -> RankRun:
    """A flat model, of a mixture's experts only a few: needs grow with them in a straight line."""
    ranks, settings = role.topology.ep, role.spec.settings
    own = role.spec.num_experts // ranks
    least = max(FEWEST_EXPERTS, -(-int(settings.get("moe_router_topk") or 0) // ranks))
    if own <= least + 1 or settings.get("moe_router_num_groups"):
        return run_rank(role, 0, skew=skew)
    fewer, more = (run_rank(_with_experts(role, (least + n) * ranks), 0, skew=skew) for n in (0, 1))
    return extended(fewer, more, own - least)


def _with_experts(role: Role, experts: int) -> Role:
    settings = {**role.spec.settings, "num_moe_experts": experts}
    return replace(role, spec=replace(role.spec, settings=settings))


def _flat(role: Role) -> Role:
    topology = role.topology
    replicas = -(-topology.ep // topology.cp)  # as few as the experts need
    world = topology.tp * topology.cp * replicas
    flat = replace(topology, world=world, pp=1, vpp=1, chunk_layers=None)
    parallel = replace(role.config.parallel, pipeline=1, virtual_pipeline=1, chunk_layers=None)
    recompute = role.config.recompute if role.optimizer is not None else "none"  # forwards only
    config = replace(role.config, parallel=parallel, recompute=recompute)
    return replace(role, topology=flat, config=config)


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
