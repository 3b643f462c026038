import pytest

from tests.models.tiny import write_llama


@pytest.fixture(scope="session", params=[False, True], ids=["untied", "tied"])
def llama(request, tmp_path_factory):
    """A tiny model's directory, once with separate and once with tied embeddings."""
    directory = tmp_path_factory.mktemp("llama") / "model"
    return write_llama(directory, tie_word_embeddings=request.param)
