from contextlib import ExitStack

from megarlhf.rewards.endpoints import LONGEST_REST_S, Endpoints


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def take(endpoints):
    with endpoints.next() as endpoint:
        return endpoint


def test_the_least_loaded_is_next():
    endpoints = Endpoints("abc")
    with ExitStack() as stack:
        assert [stack.enter_context(endpoints.next()).url for _ in "abcabc"] == [*"abcabc"]
    assert [take(endpoints).url for _ in "abc"] == [*"abc"]


def test_one_that_failed_rests_longer_each_time_until_it_answers():
    clock = Clock()
    endpoints = Endpoints("ab", clock)
    bad = take(endpoints)
    rests = []
    for _ in range(12):
        endpoints.failed(bad)
        rests.append(bad.rests_until - clock.now)
        assert take(endpoints).url == "b"
    assert rests[:3] == [1.0, 2.0, 4.0]
    assert rests[-1] == LONGEST_REST_S
    clock.now += LONGEST_REST_S
    assert take(endpoints) is bad
    endpoints.answered(bad)
    assert (bad.failures, bad.rests_until) == (0, 0.0)


def test_where_all_rest_the_one_that_is_ready_first():
    endpoints = Endpoints("ab", Clock())
    a, b = take(endpoints), take(endpoints)
    for endpoint in (a, a, b):
        endpoints.failed(endpoint)
    assert take(endpoints) is b
