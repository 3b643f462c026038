import pytest

from tests.models.tiny import write_llama


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """Directories of a tiny model with tied (True) and separate (False) embeddings."""
    return {
        tied: write_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=tied)
        for tied in (False, True)
    }
