"""Rules that hold between a layout and the sequences that are dealt to its ranks."""

from typing import Any

from megarlhf.config.layout_checks import size_of
from megarlhf.config.schema import ParallelConfig
from megarlhf.errors import UserError


def replicas(parallel: ParallelConfig, world_size: int) -> int:
    """The number of data-parallel ranks."""
    return world_size // (parallel.tensor * parallel.pipeline * parallel.context)


def dealt_in(parallel: ParallelConfig, world_size: int) -> int:
    """Sequences of a number that is a multiple of this can always be dealt to the ranks."""
    interleaved = parallel.pipeline if parallel.virtual_pipeline > 1 else 1
    return replicas(parallel, world_size) * interleaved


def check_shares(
    sequences: int,
    where: str,
    longest: int,
    parallel: ParallelConfig,
    world_size: int,
    micro_batch_tokens: int,
) -> None:
    """An optimizer step's sequences can be dealt to the data-parallel ranks, whatever their lengths.

    Args:
        sequences: How many they are; ``where`` names the settings that say so.
        longest: Most tokens of one.
        parallel: The layout, of ``world_size`` ranks.
        micro_batch_tokens: ``train.micro_batch_tokens``.
    """
    ranks, stride = replicas(parallel, world_size), dealt_in(parallel, world_size)
    each = " with interleaved pipeline stages" if stride > ranks else ""
    if sequences < stride:
        raise UserError(
            f"{sequences} sequences an optimizer step are too few for {ranks} data-parallel "
            f"ranks{each}",
            where=where,
            fix=f"make them {stride} or more, or use fewer ranks",
        )
    padding = 2 * parallel.context * (parallel.tensor if parallel.sequence else 1)
    if sequences % stride and 2 * (longest + padding) > micro_batch_tokens:
        raise UserError(
            f"{sequences} sequences an optimizer step are not a multiple of {stride} ({ranks} "
            f"data-parallel ranks{each}), and the longest do not fit in pairs into "
            f"train.micro_batch_tokens={micro_batch_tokens}",
            where=where,
            fix=f"make them a multiple of {stride}, or train.micro_batch_tokens at least "
            f"{2 * (longest + padding)}",
        )


def check_sequence_length(
    lengths: dict[str, int], model: dict[str, Any], name: str = "model"
) -> None:
    """A sequence as long as the settings ``lengths`` allow has a position for every token."""
    positions, total = size_of(model, "max_position_embeddings"), sum(lengths.values())
    if positions is not None and total > positions:
        keys = " + ".join(lengths)
        raise UserError(
            f"{total} tokens are more than the {name}'s max_position_embeddings ({positions})",
            where=keys,
            fix=f"lower {keys} to at most {positions}",
        )
