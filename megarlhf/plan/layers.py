"""Deep stages from shallow ones: a stage of equal layers needs so much, and so much more a layer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from megarlhf.plan.equal_layers import have_equal_layers, with_layers
from megarlhf.plan.fake_run import RankRun, run_rank
from megarlhf.plan.roles import Role
from megarlhf.plan.usage import Traffic, Usage

FEW = 2  # layers a chunk of the smaller of two runs; the other has one more


def stage_rank(role: Role, stage: int) -> int:
    """The first rank of a pipeline stage."""
    topology = role.topology
    return stage * topology.world // topology.pp


def run_stage(role: Role, stage: int, *, exact: bool, skew: float = 1.0) -> RankRun:
    """What a rank of a stage needs: run with all its layers, or with few and many times.

    Args:
        role: The model and its work.
        stage: Of its pipeline.
        exact: Run all layers, however many.
        skew: See `Received`.
    """
    rank, counts = stage_rank(role, stage), role.topology.layer_counts(role.spec.num_layers)
    own = {counts[chunk * role.topology.pp + stage] for chunk in range(role.topology.vpp)}
    if exact or len(own) > 1 or max(own) <= FEW + 2 or not have_equal_layers(role.spec):
        return run_rank(role, rank, skew=skew)
    fewer, more = (run_rank(shallow(role, FEW + n), rank, skew=skew) for n in (0, 1))
    return extended(fewer, more, own.pop() - FEW)


def shallow(role: Role, layers: int) -> Role:
    """The same role with so many layers a chunk."""
    chunks = role.topology.pp * role.topology.vpp
    return replace(
        role,
        spec=with_layers(role.spec, layers * chunks),
        topology=replace(role.topology, chunk_layers=None),
    )


def extended(fewer: RankRun, more: RankRun, times: int) -> RankRun:
    """The straight line through two runs, ``times`` layers behind the first."""

    def number(low: int, high: int) -> int:
        return low + (high - low) * times

    def kinds(low: Mapping[str, int], high: Mapping[str, int]) -> dict[str, int]:
        names = dict.fromkeys([*low, *high])
        return {name: max(0, number(low.get(name, 0), high.get(name, 0))) for name in names}

    def usage(low: Usage, high: Usage) -> Usage:
        traffic = {}
        for key, found in low.traffic.items():
            other = high.traffic[key]
            traffic[key] = Traffic(
                found.group,
                found.kind,
                number(found.calls, other.calls),
                number(found.nbytes, other.nbytes),
            )
        return Usage(
            {part: kinds(peak, high.peaks[part]) for part, peak in low.peaks.items()},
            number(low.flops, high.flops),
            number(low.attention_flops, high.attention_flops),
            number(low.moved, high.moved),
            traffic,
        )

    return RankRun(
        rank=fewer.rank,
        resting=kinds(fewer.resting, more.resting),
        passes={name: usage(low, more.passes[name]) for name, low in fewer.passes.items()},
        micro_batches=fewer.micro_batches,
        update=None if fewer.update is None else usage(fewer.update, more.update),
        parameters=number(fewer.parameters, more.parameters),
        host=number(fewer.host, more.host),
    )


def distinct_stages(role: Role) -> Counter[int]:
    """The first, the second and the last stage, and how many stages are as each of them."""
    stages = role.topology.pp
    if stages <= 2:
        return Counter(range(stages))
    return Counter({0: 1, 1: stages - 2, stages - 1: 1})
