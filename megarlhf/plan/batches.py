"""The batches that a role is run with: a step, dealt as the trainer deals it, and full micro-batches."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megarlhf.data.beginnings import pieces_of
from megarlhf.data.packing import padded_length
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.shares import Shares, packs_last
from megarlhf.parallel.topology import Topology
from megarlhf.plan.roles import TRAIN, Role, Work

Groups = list[tuple[int, ...]]


@dataclass(frozen=True)
class Dealt:
    """A step's batch as the data-parallel rank that has most of it gets it.

    Attributes:
        full: Positions of the sequences of a full micro-batch. Where prompts are run once there may be
            more of them than are dealt into one: sequences of other lengths would fill it up.
        full_tokens: What it holds, with padding.
        micro_batches: Of the step.
        tokens: Of all of them together.
    """

    full: tuple[int, ...]
    full_tokens: int
    micro_batches: int
    tokens: int


def dealt(role: Role, phase: str, lengths: tuple[int, int] | None = None) -> Dealt:
    """Deal a step's sequences to the role's ranks.

    Args:
        role: Who runs them.
        phase: Of its work.
        lengths: Of every prompt and every response; None: the longest.
    """
    work = replace(role.work[phase], fields=(), values=(), times=1)
    if lengths is not None:
        trained = None if work.trained is None else min(lengths[1], work.trained)
        work = replace(work, tokens=sum(lengths), trained=trained)
    # Layouts that differ in the rest deal alike: a search asks for many of them.
    topology = replace(role.topology, ep=1, chunk_layers=None)
    last = packs_last(role.spec, role.share)
    return _dealt(work, topology, role.micro_batch_tokens, role.share, last, phase == TRAIN)


@functools.lru_cache(maxsize=4096)
def _dealt(
    work: Work, topology: Topology, most: int, share: bool, last: bool, trains: bool
) -> Dealt:
    deal = Shares(topology, most, share=share, with_last=last)
    sequences, groups = step_of(work)
    if trains and share:
        # Rows of ``ptx``, counted as sequences of the rollout's length, may make their number odd.
        sequences += sequences[: -len(sequences) % (topology.dp * deal.multiple_of)]
        of_ranks = deal.shares(sequences)
    else:
        sequences, groups = deal.filled(sequences, groups)
        of_ranks = deal.shares(sequences, groups)

    def size(pack: Sequence[int]) -> int:
        pieces = pieces_of(sequences, pack, share=share, with_last=last)
        return sum(padded_length(p.end - p.begin, deal.pad_to_multiple) for p in pieces)

    totals = [sum(map(size, packs)) for packs in of_ranks]
    busiest = of_ranks[totals.index(max(totals))]
    full = _filled_up(busiest, work.in_a_row, lambda pack: size(pack) <= most)
    return Dealt(tuple(full), size(full), len(busiest), max(totals))


def _filled_up(
    packs: Sequence[Sequence[int]], in_a_row: int, fits: Callable[[list[int]], bool]
) -> list[int]:
    """The first micro-batch, and of the following ones what it still has room for."""
    found: list[int] = []
    for pack in packs:
        for begin in range(0, len(pack), in_a_row):
            longer = [*found, *pack[begin : begin + in_a_row]]
            if found and not fits(longer):
                return found
            found = longer
    return found


def step_of(work: Work) -> tuple[list[TokenSequence], Groups]:
    """All sequences of a step, a prompt's samples behind each other, and those that belong together."""
    trained = work.tokens if work.trained is None else work.trained
    mask = [0.0] * (work.tokens - trained) + [1.0] * trained
    fields = {name: [0.5] * work.tokens for name in work.fields}
    values = dict.fromkeys(work.values, 1.0)
    prompts = 1 if work.trained is None else -(-work.sequences // work.samples)
    ids = [[prompt] * work.tokens for prompt in range(prompts)]
    sequences = [
        TokenSequence(ids[number // work.samples % prompts], mask, fields, values)
        for number in range(work.sequences)
    ]
    rows = range(0, work.sequences, work.in_a_row)
    return sequences, [tuple(range(row, row + work.in_a_row)) for row in rows]


def batch_of(role: Role, phase: str, stage: int) -> tuple[list[TokenSequence], Groups]:
    """As many full micro-batches of a phase as fill the pipeline, and which sequences each holds."""
    topology, found = role.topology, dealt(role, phase)
    in_flight = 2 * topology.pp if topology.vpp > 1 else topology.pp - stage
    filling = in_flight + (topology.vpp == 1 < topology.pp)  # and one that follows
    wanted = topology.dp * min(found.micro_batches, filling)
    sequences, _ = step_of(role.work[phase])
    full = [sequences[position % len(sequences)] for position in found.full]  # behind them: copies
    size = len(full)
    packs = [tuple(range(begin, begin + size)) for begin in range(0, wanted * size, size)]
    return full * wanted, packs
