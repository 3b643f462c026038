"""pass@k against its definition: the mean over all choices of k of the n samples."""

import itertools

import pytest

from megarlhf.algo.pass_at_k import pass_at_k


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_it_is_the_mean_over_all_choices(samples):
    for correct in range(samples + 1):
        solved = [index < correct for index in range(samples)]
        for k in range(1, samples + 1):
            choices = [any(chosen) for chosen in itertools.combinations(solved, k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(
                sum(choices) / len(choices), abs=1e-15
            )


def test_cases_by_hand():
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs
    assert pass_at_k(1000, 999, 2) == 1.0


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_impossible_numbers(samples, correct, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, correct, k)
