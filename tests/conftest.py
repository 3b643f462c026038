from collections.abc import Iterator
from pathlib import Path

import pytest

from megarlhf.parallel.pool import RankPool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of kernels that only a GPU has say why they are skipped."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


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
