"""Rows of several sources, drawn in given proportions."""

from collections.abc import Iterable, Iterator, Sequence

from megarlhf.data.rows import Row
from megarlhf.errors import UserError

KEY = "data.probabilities"
ROUNDING = 1e-6  # 0.333333 three times is meant to be 1


def check_probabilities(probabilities: Sequence[float] | None, specs: Sequence[str]) -> None:
    """Refuse probabilities that are none, or not one for each source.

    Raises:
        UserError: Says which.
    """
    if probabilities is None:
        return
    if len(probabilities) != len(specs):
        raise UserError(
            f"{len(probabilities)} probabilities for {len(specs)} sources ({', '.join(specs)})",
            where=KEY,
            fix="give one for each source, in their order",
        )
    for probability, spec in zip(probabilities, specs, strict=True):
        if not 0 < probability <= 1:
            raise UserError(
                f"{probability} for {spec} is not greater than 0 and at most 1",
                where=KEY,
                fix="correct it, or leave the source out",
            )
    if abs(sum(probabilities) - 1) > ROUNDING:
        scaled = [round(probability / sum(probabilities), 4) for probability in probabilities]
        raise UserError(
            f"the probabilities add up to {sum(probabilities):.6g}, not to 1",
            where=KEY,
            fix=f"in the same proportions: {scaled}",
        )


def mixed(
    sources: Sequence[Iterable[Row]], probabilities: Sequence[float], *, all_exhausted: bool
) -> Iterator[Row]:
    """Draw from each source its share.

    Each row is the next one of the source that lags most behind its share. So there is no chance
    in it: any beginning of the mix has the proportions, as near as whole rows go, and the order is
    the same on every machine.

    Args:
        sources: What to draw from; each may be iterated again.
        probabilities: Share of each; see `check_probabilities`.
        all_exhausted: False ends where a source has no next row (of the others rows may be left
            over, no row comes twice). True begins such a source again, until every row of every
            source has come.

    Raises:
        UserError: A source has no rows.
    """
    readers = [iter(source) for source in sources]
    upcoming = [next(reader, None) for reader in readers]
    if None in upcoming:
        raise UserError(
            f"source {upcoming.index(None) + 1} of {len(sources)} has no rows",
            where=KEY,
            fix="leave the source out",
        )
    drawn = [0] * len(sources)
    exhausted: set[int] = set()
    while len(exhausted) < len(sources):
        total = sum(drawn) + 1
        lags = [share * total - count for share, count in zip(probabilities, drawn, strict=True)]
        chosen = lags.index(max(lags))
        row = upcoming[chosen]
        if row is None:
            if not all_exhausted:
                return
            readers[chosen] = iter(sources[chosen])
            row = next(readers[chosen])
        yield row
        drawn[chosen] += 1
        upcoming[chosen] = next(readers[chosen], None)
        if upcoming[chosen] is None:
            exhausted.add(chosen)
