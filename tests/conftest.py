from collections.abc import Iterator
from pathlib import Path

import pytest

from megarlhf.parallel.pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the GSM8K files are not beside this checkout (../shared/data)")
    return folder
