"""A bar on the terminal, or now and then a line in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from tools.checkpoint_convert.conversion import Progress


@contextmanager
def bar(title: str, nbytes: int, *, shown: bool) -> Iterator[Progress]:
    """Show how much of some bytes is done, how fast, and how long the rest will take.

    Args:
        title: Stands before it.
        nbytes: All of them.
        shown: Whether to.
    """
    every = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=nbytes,
        desc=title,
        unit="B",
        unit_scale=True,
        mininterval=every,
        delay=0.2,  # no bar above what is refused at once
        disable=not shown,
    ) as shows:

        def done(count: int) -> None:
            shows.update(count)

        yield done
