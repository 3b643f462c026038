"""Log-probabilities that are computed once and found again by the sequences' tokens."""

import random

import pytest

from megarlhf.data.records import Sequence
from megarlhf.data.reference_store import StoredLogprobs, write_logprobs
from megarlhf.errors import UserError


def sequence(*token_ids):
    return Sequence(list(token_ids), [0.0] * len(token_ids))


def test_what_was_written_is_found(tmp_path):
    rng = random.Random(0)
    sequences = [sequence(*(rng.randrange(9) for _ in range(rng.randint(2, 9)))) for _ in range(50)]
    values = {tuple(s.token_ids): [-0.5 * n for n in range(len(s.token_ids))] for s in sequences}
    found = [(s, values[tuple(s.token_ids)]) for s in sequences]
    write_logprobs(tmp_path / "reference", iter(found))
    stored = StoredLogprobs(tmp_path / "reference")
    shuffled = rng.sample(sequences, len(sequences))
    assert stored(shuffled) == [values[tuple(s.token_ids)] for s in shuffled]
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]  # no part of it is left


def test_a_row_that_is_not_there(tmp_path):
    write_logprobs(tmp_path / "reference", [(sequence(1, 2), [0.0, -1.0])])
    with pytest.raises(UserError, match="lack a row") as caught:
        StoredLogprobs(tmp_path / "reference")([sequence(1, 2, 3)])
    assert "remove this directory" in caught.value.fix
