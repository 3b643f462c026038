"""How much older than the policy that learns from it a rollout is."""

from collections.abc import Sequence

from megarlhf.data.records import Sample


def staleness(groups: Sequence[Sequence[Sample]], version: int) -> dict[str, float]:
    """Updates between the weights that made a token and those that are trained on it.

    Args:
        groups: Samples, which know the versions of their tokens.
        version: Of the weights that are trained.

    Returns:
        ``staleness_mean`` and ``staleness_max`` over all sampled tokens.
    """
    total = tokens = oldest = 0
    for part in (part for group in groups for sample in group for part in sample.parts):
        begin = 0
        for made_by, end in part.version_spans:
            sampled = end - begin if part.mask is None else sum(part.mask[begin:end])
            total += sampled * (version - made_by)
            tokens += sampled
            oldest = max(oldest, version - made_by)
            begin = end
    return {"staleness_mean": total / tokens, "staleness_max": float(oldest)}
