"""Prompts by measured difficulty: what is drawn, and that it goes on where it stood."""

import json
from collections import Counter

import pytest

from megarlhf.data.curriculum import LEAST, CurriculumStream, weight
from megarlhf.data.records import Prompt, Sample

PROMPTS = [Prompt(index=10 * n, text="", token_ids=(n + 1,)) for n in range(8)]


def scored(prompt, *scores):
    return [Sample(prompt, [1], [0.0], 0, "stop", "", score, score) for score in scores]


def learn(stream, rates):
    stream.observe([scored(PROMPTS[place], rate) for place, rate in rates.items()])


def test_a_rate_is_the_mean_of_scores_and_later_a_running_one():
    stream = CurriculumStream(PROMPTS, seed=1)
    stream.observe([scored(PROMPTS[2], 1.0, 0.0, 7.0, -3.0), scored(PROMPTS[3], None, 0.25)])
    assert stream.rates == {2: 0.5, 3: 0.25}
    stream.observe([scored(PROMPTS[3], 0.75), scored(PROMPTS[4], None)])
    assert stream.rates == {2: 0.5, 3: 0.5}


def test_prompts_come_in_proportion_to_their_weights():
    """One prompt a batch, 8,000 batches: chi-squared with 7 degrees, 24.3 at one in a thousand."""
    stream = CurriculumStream(PROMPTS, seed=1)
    rates = {0: 0.0, 1: 1.0, 2: 0.1, 3: 0.25, 4: 0.5, 5: 0.75, 6: 0.9}  # 7 is new: as 0.5
    learn(stream, rates)
    weights = [weight(rates.get(place, 0.5)) for place in range(8)]
    assert weights[:2] == [LEAST, LEAST] and weights[7] == weights[4] == max(weights)
    draws = 8000
    counts = Counter(stream.next_batch(1)[0].index // 10 for _ in range(draws))
    expected = [draws * w / sum(weights) for w in weights]
    distance = sum((counts[p] - want) ** 2 / want for p, want in enumerate(expected))
    assert distance < 24.3


def test_a_batch_repeats_no_prompt_before_all_are_in_it():
    stream = CurriculumStream(PROMPTS, seed=1)
    assert len({prompt.index for prompt in stream.next_batch(8)}) == 8
    counts = Counter(prompt.index for prompt in stream.next_batch(19))
    assert len(counts) == 8 and set(counts.values()) == {2, 3}


def test_it_goes_on_where_it_stood():
    stream, again = (CurriculumStream(PROMPTS, seed=3) for _ in range(2))
    for _ in range(3):
        learn(stream, {prompt.index // 10: 0.9 for prompt in stream.next_batch(3)})
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert [stream.next_batch(3) for _ in range(5)] == [again.next_batch(3) for _ in range(5)]


def test_another_seed_draws_others_and_a_batch_of_none_is_refused():
    one, two = (CurriculumStream(PROMPTS, seed=seed) for seed in (1, 2))
    assert [one.next_batch(4) for _ in range(3)] != [two.next_batch(4) for _ in range(3)]
    with pytest.raises(ValueError, match="at least one"):
        one.next_batch(0)
