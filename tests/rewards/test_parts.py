import asyncio

import pytest

from megarlhf.rewards.parts import LONGEST_PAUSE_S, Policy, _pause, score_in_parts
from megarlhf.rewards.scorer import Batch, CallFailed, Scores, ScoringFailed


class Calls:
    """Scores texts by their numbers; those in ``bad`` fail, the first ``flaky`` calls too."""

    def __init__(self, bad=(), flaky=0, **failure):
        self.bad, self.flaky, self.failure, self.sizes = bad, flaky, failure, []

    async def __call__(self, part):
        self.sizes.append(len(part))
        await asyncio.sleep(0)
        if len(self.sizes) <= self.flaky or any(int(query) in self.bad for query in part.queries):
            raise CallFailed("it failed", **self.failure)
        numbers = [float(query) for query in part.queries]
        return Scores(numbers, list(numbers), {"number": numbers})


def run(calls, count, *, slots=1, batch_size=4, retries=1, stop=False):
    queries = [str(n) for n in range(count)]
    batch = Batch(queries, [f"p{n // 10}" for n in range(count)], [None] * count)
    policy = Policy(batch_size=batch_size, retries=retries, pause_s=0.0, stop=stop)
    return asyncio.run(score_in_parts(batch, calls, slots, policy))


def test_parts():
    calls = Calls()
    scores = run(calls, 10)
    assert calls.sizes == [4, 4, 2]
    assert scores.rewards == scores.scores == scores.logs["number"] == [float(n) for n in range(10)]


def test_no_slot_is_idle():
    calls = Calls()
    run(calls, 6, slots=3)
    assert calls.sizes == [2, 2, 2]


def test_one_bad_response_costs_no_other():
    calls = Calls(bad={2})
    scores = run(calls, 4)
    assert scores.rewards == [0.0, 1.0, None, 3.0]
    assert scores.failures == {2: "it failed"}
    assert calls.sizes == [4, 1, 1, 1, 1, 1]
    assert scores.retries == 1
    assert scores.logs["number"] == [0.0, 1.0, 3.0]


def test_what_may_pass_is_repeated_whole():
    calls = Calls(flaky=2, again=True)
    assert run(calls, 4, retries=2).failures == {}
    assert calls.sizes == [4, 4, 4]


def test_what_no_response_causes_is_not_taken_apart():
    calls = Calls(bad={0}, again=True, split=False)
    scores = run(calls, 6, retries=1)
    assert scores.rewards == [None] * 4 + [4.0, 5.0]
    assert sorted(calls.sizes) == [2, 4, 4]


def test_stop_at_the_first():
    with pytest.raises(ScoringFailed) as caught:
        run(Calls(bad={5}), 8, stop=True)
    assert (caught.value.index, caught.value.reason) == (5, "it failed")


def test_hopeless_is_given_up_soon():
    calls = Calls(bad=set(range(1000)))
    with pytest.raises(ScoringFailed):
        run(calls, 1000, batch_size=1000, retries=0)
    assert calls.sizes == [1000] + [1] * 1000  # all were on their way when the fifth prompt failed
    calls = Calls(bad=set(range(10, 50)))  # all responses to four prompts
    assert run(calls, 100, batch_size=100).failures.keys() == calls.bad


def test_pauses_double_and_differ():
    pauses = [[_pause(1.0, attempt) for _ in range(50)] for attempt in range(10)]
    assert all(2.0**n * 0.5 <= pause <= 2.0**n * 1.5 for n in range(4) for pause in pauses[n])
    assert max(pauses[9]) <= 1.5 * LONGEST_PAUSE_S
    assert len(set(pauses[0])) > 10
