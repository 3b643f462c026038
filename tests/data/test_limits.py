import pytest

from megarlhf.data.limits import Limit, short_enough
from megarlhf.data.records import Example, Sequence
from megarlhf.data.sources import read_rows
from megarlhf.errors import UserError


def example(prompt, *answers):
    """Prompt tokens 0, 1, ...; each answer a text, of which a character is a token."""
    before = list(range(prompt))
    sequences = [
        Sequence(before + [ord(c) for c in answer], [0.0] * prompt + [1.0] * len(answer))
        for answer in answers
    ]
    return Example(sequences, prompt, {"margin": 1.0})


def fit(policy, limit, *parts):
    fitted = Limit(limit, policy).fit(example(*parts))
    left = fitted.example and [(s.token_ids, s.loss_mask) for s in fitted.example.sequences]
    return left, fitted.reason


def test_what_fits_stays():
    for policy in ("error", "drop", "truncate_left", "truncate_right"):
        left, reason = fit(policy, 5, 3, "ab")
        assert (left, reason) == ([([0, 1, 2, 97, 98], [0.0, 0.0, 0.0, 1.0, 1.0])], None)


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_dropped(policy):
    assert fit(policy, 4, 3, "ab") == (None, "longer than data.max_tokens=4")
    assert fit(policy, 5, 3, "ab", "abc")[0] is None


def test_cut_on_the_right():
    left, reason = fit("truncate_right", 4, 3, "ab", "c")
    assert left == [([0, 1, 2, 97], [0.0, 0.0, 0.0, 1.0]), ([0, 1, 2, 99], [0.0, 0.0, 0.0, 1.0])]
    assert reason == "cut on the right to data.max_tokens=4"
    assert fit("truncate_right", 3, 3, "ab")[1] == "the prompt alone fills data.max_tokens=3"
    assert "chosen equals rejected within" in fit("truncate_right", 4, 3, "ab", "ac")[1]


def test_cut_on_the_left():
    left, reason = fit("truncate_left", 4, 3, "ab", "c")
    assert left == [([1, 2, 97, 98], [0.0, 0.0, 1.0, 1.0]), ([1, 2, 99], [0.0, 0.0, 1.0])]
    assert reason == "cut on the left to data.max_tokens=4"
    assert "the response alone is longer" in fit("truncate_left", 2, 3, "ab")[1]
    cut = Limit(4, "truncate_left").fit(example(3, "ab")).example
    assert (cut.prompt_tokens, cut.values) == (2, {"margin": 1.0})


def test_plain_text_keeps_its_end_on_the_left():
    left, _ = fit("truncate_left", 2, 0, "abc")
    assert left == [([98, 99], [0.0, 1.0])]
    left, _ = fit("truncate_right", 2, 0, "abc")
    assert left[0][0] == [97, 98]


def test_fields_are_cut_with_their_tokens():
    sequence = Sequence([1, 2, 3, 4], [0.0, 0.0, 1.0, 1.0], {"labels": [0.0, 0.0, 0.5, 1.0]})
    fitted = Limit(3, "truncate_right").fit(Example([sequence], 1)).example.sequences[0]
    assert fitted.fields == {"labels": [0.0, 0.0, 0.5]}


def test_short_enough(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n{}\n{}\n")
    rows = read_rows(f"json@{file}", required_keys=[])
    keys = {"limit_key": "data.limit", "overlong_key": "data.overlong"}
    with caplog.at_level("WARNING", logger="megarlhf"):
        assert short_enough(rows, [3, 4, 5], limit=5, overlong="error", **keys) == [0, 1, 2]
        assert not caplog.records
        assert short_enough(rows, [3, 9, 5], limit=5, overlong="drop", **keys) == [0, 2]
    assert "dropped 1 of 3 rows" in caplog.text
    with pytest.raises(UserError) as caught:
        short_enough(rows, [3, 9, 8], limit=5, overlong="error", **keys)
    assert caught.value.where == f"{file}:2"
    assert "9 tokens are more than data.limit=5 (2 of 3 rows" in caught.value.what
    with pytest.raises(UserError, match="3 of 3 rows"):
        short_enough(rows, [6, 9, 8], limit=5, overlong="drop", **keys)
