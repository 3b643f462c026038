import socket
import time

import pytest

from megarlhf.config.schema import RewardConfig
from megarlhf.errors import UserError
from megarlhf.rewards.sources import rewards_of
from tests.rewards.conftest import rewards_in, samples_of


def lengths(_, body):
    return 200, {"rewards": [float(len(query)) for query in body["query"]]}


def first(count, answer):
    """Answers so for the first requests, then as it should."""
    return lambda number, body: answer if number < count else lengths(number, body)


def test_what_is_sent(server, score):
    one = server(lengths)
    samples, metrics = score(["x", "yy"], urls=(one.url,), batch_size=2)
    assert rewards_in(samples) == [4.0, 5.0]
    assert metrics["reward_from_remote"] == 4.5
    sent = {key: [v for body in one.requests for v in body[key]] for key in one.requests[0]}
    assert {key: sorted(values) for key, values in sent.items()} == {
        "query": ["p0:x", "p1:yy"],
        "prompts": ["p0:", "p1:"],
        "labels": [0, 1],
    }


def test_batches_are_spread_over_the_servers(server, score):
    servers = [server(lengths) for _ in range(3)]
    samples, _ = score("x" * 60, urls=tuple(one.url for one in servers), batch_size=5)
    assert rewards_in(samples) == [4.0] * 10 + [5.0] * 50
    assert sum(len(one.requests) for one in servers) == 12
    assert all(len(one.requests) >= 2 for one in servers)  # as many as run at a time
    assert all(len(body["query"]) == 5 for one in servers for body in one.requests)


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"detail": "busy"}),
        (429, b""),
        (200, b"<html>"),
        (200, [[1.0]]),
        (200, {"reward": [1.0]}),
        (200, {"rewards": [1.0, 2.0]}),
        (200, {"rewards": [None]}),
        (200, b'{"rewards": [NaN]}'),
    ],
)
def test_a_server_that_fails_and_then_works(server, score, answer):
    one = server(first(2, answer))
    samples, metrics = score(["x"], urls=(one.url,), retries=2)
    assert rewards_in(samples) == [4.0]
    assert metrics["reward_retries"] == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, {"error": "no model"}), "answered with status 503: no model"),
        ((404, b"not here"), "answered with status 404: 'not here'"),
        ((200, b"<html>"), "answered no JSON: '<html>'"),
        ((200, b"[" * 100_000), f"answered no JSON: {'[' * 300!r}"),
        ((200, {"reward": [1.0]}), "returned {'reward': [1.0]} without 'rewards'"),
        ((200, {"rewards": []}), "returned 0 values for 1 responses"),
        ((200, b'{"rewards": [NaN]}'), "returned nan"),
    ],
)
def test_a_server_that_goes_on_failing(server, score, answer, said):
    one = server(lambda *_: answer)
    with pytest.raises(UserError) as caught:
        score(["x"], urls=(one.url,), retries=1)
    assert f"{one.url} {said} for the prompt 'p0:' and the response 'x'" in caught.value.what
    assert caught.value.where == one.url
    assert len(one.requests) == 2


@pytest.mark.parametrize("answer", [(500, b"trace"), (422, {"error": "bad"}), (200, b"[]")])
def test_one_response_that_the_server_cannot_score(server, score, answer):
    def respond(number, body):
        return answer if any("bad" in query for query in body["query"]) else lengths(number, body)

    one = server(respond)
    samples, metrics = score(["a", "bad", "b", "c"], urls=(one.url,), retries=1, on_failure="drop")
    assert rewards_in(samples) == [4.0, None, 4.0, 4.0]
    assert metrics["reward_dropped"] == 1


def test_a_server_that_hangs(server, score):
    one = server(lambda *_: time.sleep(1.0) or (200, {"rewards": [0.0]}))
    with pytest.raises(UserError, match=r"nothing within 0.2 s \(reward.timeout_s\)"):
        score(["x"], urls=(one.url,), retries=0, timeout_s=0.2)


def test_a_server_that_is_not_there():
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/get_reward"
        with pytest.raises(UserError) as caught:
            rewards_of(RewardConfig(urls=(url,))).check()
    assert caught.value.where == url
    assert "no reward server answers there" in caught.value.what
    assert "serve-rm" in caught.value.fix


def test_a_server_that_dies_is_avoided(server, score, monkeypatch):
    dying, living = server(lengths), server(lengths)
    with rewards_of(RewardConfig(urls=(dying.url, living.url), batch_size=1)) as rewards:
        dying.close()
        samples = samples_of(*"abcdefgh")
        tally = rewards.score(samples)
    assert rewards_in(samples) == [4.0] * 8
    assert len(living.requests) == 8
    assert 1 <= tally.retries <= 4  # two before it is known, more only on a very slow machine


def test_a_label_that_is_not_json(server, score):
    one = server(lengths)
    samples = samples_of("a", "b")
    samples[1].prompt.__dict__["label"] = {1, 2}
    with (
        pytest.raises(UserError, match=r"a label cannot be sent as JSON.*'p1:'"),
        rewards_of(RewardConfig(urls=(one.url,), retries=0)) as rewards,
    ):
        rewards.score(samples)
