import json

import pytest

from megarlhf.parity.tool import Settings, run_parity
from tests.models.tiny import write_llama


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Directories of a tiny Llama with separate (False) and tied (True) embeddings."""
    return {
        tied: write_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=tied)
        for tied in (False, True)
    }


@pytest.fixture
def parity(ranks, models, tmp_path):
    """Runs the tool on the session's ranks; the exit status, the rows of the JSON and the table."""

    def run(*layouts, tied=False, setup=None, pool=ranks, **settings):
        settings = {"steps": 1, **settings}
        file, lines = tmp_path / "parity.json", []
        asked = Settings(models[tied], layouts, json=file, **settings)
        status = run_parity(asked, setup=setup, pool=pool, write=lines.append)
        rows = {row["layout"]: row for row in json.loads(file.read_text())["layouts"]}
        return status, rows, "".join(lines)

    return run
