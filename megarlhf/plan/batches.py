"""The batches that a role is run with: as many of the longest sequences as fill its pipeline."""

from megarlhf.data.packing import padded_length
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.plan.roles import Role, Work


def batch_of(
    role: Role, work: Work, stage: int
) -> tuple[list[TokenSequence], list[tuple[int, ...]] | None]:
    """Enough of the work's sequences to fill the pipeline, and those that belong together."""
    topology = role.topology
    each = sequences_in_micro_batch(role, work)
    in_flight = 2 * topology.pp if topology.vpp > 1 else topology.pp - stage
    filling = in_flight + (topology.vpp == 1 < topology.pp)  # and one that follows
    wanted = min(micro_batches_of(role, work), filling)
    count = topology.dp * each * wanted
    trained = work.tokens if work.trained is None else work.trained
    sequence = TokenSequence(
        [1] * work.tokens,
        [0.0] * (work.tokens - trained) + [1.0] * trained,
        {name: [0.5] * work.tokens for name in work.fields},
        dict.fromkeys(work.values, 1.0),
    )
    rows = range(0, count, work.in_a_row)
    together = [tuple(range(row, row + work.in_a_row)) for row in rows]
    return [sequence] * count, together if work.in_a_row > 1 else None


def sequences_in_micro_batch(role: Role, work: Work) -> int:
    """Of equally long ones, in whole rows."""
    row = work.in_a_row * padded_length(work.tokens, padding_of(role))
    return work.in_a_row * max(1, role.micro_batch_tokens // row)


def micro_batches_of(role: Role, work: Work) -> int:
    """Of a data-parallel rank, in the whole step."""
    share = -(-work.sequences // role.topology.dp)
    count = -(-share // sequences_in_micro_batch(role, work))
    stages = role.topology.pp if role.topology.vpp > 1 else 1
    return -(-count // stages) * stages


def padding_of(role: Role) -> int:
    """See `ModelEngine.pad_to_multiple`."""
    topology = role.topology
    multiple = topology.tp if topology.sequence_parallel else 1
    return multiple * (2 * topology.cp if topology.cp > 1 else 1)


def tokens_in_micro_batch(role: Role, work: Work) -> int:
    """Of all sequences together, with padding."""
    return sequences_in_micro_batch(role, work) * padded_length(work.tokens, padding_of(role))
