import pytest

from megarlhf.data.mixing import check_probabilities, mixed
from megarlhf.data.sources import Selection, read_rows
from megarlhf.errors import UserError


def source(name, count):
    return [f"{name}{number}" for number in range(count)]


def test_every_beginning_has_the_proportions():
    sources = [source("a", 1000), source("b", 1000), source("c", 1000)]
    shares = (0.5, 0.3, 0.2)
    rows = list(mixed(sources, shares, all_exhausted=False))
    assert len(rows) == pytest.approx(2000, abs=3)
    for length in (10, 100, 1000):
        for name, share in zip("abc", shares, strict=True):
            drawn = sum(row[0] == name for row in rows[:length])
            assert drawn == pytest.approx(share * length, abs=1)
    for name, own in zip("abc", sources, strict=True):
        drawn = [row for row in rows if row[0] == name]
        assert drawn == own[: len(drawn)]


def test_a_mix_ends_with_the_first_source_or_with_the_last():
    sources = [source("a", 2), source("b", 5)]
    first = list(mixed(sources, (0.5, 0.5), all_exhausted=False))
    assert first == ["a0", "b0", "a1", "b1"]
    last = list(mixed(sources, (0.5, 0.5), all_exhausted=True))
    assert [row for row in last if row[0] == "b"] == source("b", 5)
    assert [row for row in last if row[0] == "a"] == ["a0", "a1", "a0", "a1", "a0"]


def test_an_empty_source_of_a_mix():
    with pytest.raises(UserError, match="source 2 of 2 has no rows"):
        list(mixed([source("a", 2), []], (0.5, 0.5), all_exhausted=True))


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ((1.0,), "1 probabilities for 2 sources (x, y)"),
        ((0.5, 0.4, 0.1), "3 probabilities for 2 sources"),
        ((0.7, 0.7), "add up to 1.4, not to 1"),
        ((1.2, -0.2), "1.2 for x is not"),
        ((1.0, 0.0), "0.0 for y is not"),
    ],
)
def test_mixed_up_probabilities(probabilities, message):
    with pytest.raises(UserError) as caught:
        check_probabilities(probabilities, ["x", "y"])
    assert message in caught.value.what
    assert caught.value.where == "data.probabilities"
    assert caught.value.fix


def test_thirds_are_one():
    check_probabilities((0.333333, 0.333333, 0.333334), ["x", "y", "z"])


def test_sources_with_commas(write_rows):
    one = write_rows([{"q": 1}, {"q": 2}], "one.jsonl")
    two = write_rows([{"q": 3}], "two.jsonl")
    both = f"{one}, {two}"
    assert [row.values["q"] for row in read_rows(both, required_keys=["q"])] == [1, 2, 3]
    mix = Selection(both, probabilities=(0.5, 0.5), mixing="all_exhausted")
    assert [row.values["q"] for row in mix] == [1, 3, 2]
    assert [row.values["q"] for row in Selection(both, max_samples=2)] == [1, 2]
    odd = write_rows([{"q": 4}], "three,four.jsonl")
    assert [row.values["q"] for row in Selection(odd)] == [4]


def test_what_identifies_a_selection_changes_with_the_files(write_rows):
    spec = write_rows([{"q": 1}])
    before = Selection(spec).identity()
    assert Selection(spec).identity() == before
    write_rows([{"q": 1}, {"q": 2}])
    assert Selection(spec).identity() != before
