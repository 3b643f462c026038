import asyncio
import threading
import time

import pytest

from megarlhf.config.loader import load
from megarlhf.config.reward_checks import check_reward, servers_by_name
from megarlhf.config.schema import RewardConfig, RLConfig
from megarlhf.errors import UserError
from megarlhf.rewards.sources import rewards_of
from megarlhf.rewards.tally import Tally, complete_groups
from tests.rewards.conftest import rewards_in, samples_of

FUNCTION = """
async def reward_func(queries, prompts, labels):
    if any("bad" in query for query in queries): raise ValueError("bad")
    return {"rewards": labels, "scores": [0.5] * len(queries), "extra_logs": {"label": labels}}
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_weighted_sum_of_a_function_and_two_models(write, server, score, workers):
    ones = server(lambda _, body: (200, {"rewards": [1.0] * len(body["query"])}))
    threes = server(
        lambda _, body: (200, {"rewards": [3.0] * len(body["query"]), "extra_logs": {"seen": 1}})
    )
    samples, metrics = score(
        "abc",
        function=write(FUNCTION),
        urls=(ones.url, f"harm={threes.url}"),
        weights=(1.0, 10.0, -100.0),
        workers=workers,
    )
    assert rewards_in(samples) == [-290.0, -289.0, -288.0]
    assert [sample.score for sample in samples] == [0.5 + 10 - 300] * 3
    assert metrics == {
        "reward_from_function": 1.0,
        "reward_from_remote": 1.0,
        "reward_from_harm": 3.0,
        "extra_function_label": 1.0,
        "extra_harm_seen": 1.0,
        "reward_dropped": 0.0,
        "reward_retries": 0.0,
    }


def test_what_one_source_cannot_score_has_no_reward(write, server, score):
    one = server(lambda _, body: (200, {"rewards": [1.0] * len(body["query"])}))
    settings = {"function": write(FUNCTION), "urls": (one.url,), "retries": 0}
    samples, metrics = score(["a", "bad", "c"], on_failure="drop", **settings)
    assert rewards_in(samples) == [1.0, None, 3.0]
    assert metrics["reward_from_function"] == 1.0
    assert metrics["reward_dropped"] == 1
    with pytest.raises(UserError, match=r"ValueError.*'bad'"):
        score(["a", "bad", "c"], **settings)


def test_rounds_of_a_step_are_averaged_by_sample():
    tally = Tally(values={"reward_from_a": [1.0]}, samples=1)
    tally.add(Tally(values={"reward_from_a": [2.0, 3.0], "extra_a_b": []}, samples=3, dropped=1))
    assert tally.samples == 4
    assert tally.metrics() == {"reward_from_a": 2.0, "reward_dropped": 1.0, "reward_retries": 0.0}


def test_too_many_failures_end_the_run():
    tally = Tally(samples=8, dropped=3, failure="it raised for the prompt 'p'")
    tally.add(Tally(samples=8, dropped=3, failure="later"))
    tally.check(7)
    with pytest.raises(UserError, match=r"6 of 16 responses .* it raised for the prompt 'p'"):
        tally.check(6)


def test_a_prompt_with_an_unscored_sample_is_left_out():
    whole, torn = samples_of("a", "b"), samples_of("c", "d")
    for sample in [*whole, torn[0]]:
        sample.reward = 0.0
    assert complete_groups([whole, torn]) == [whole]


def test_servers_by_name():
    urls = ("http://a/x?y=z", "help=http://b", "http://c", "help=https://d:1/e")
    assert servers_by_name(urls) == {
        "remote": ["http://a/x?y=z", "http://c"],
        "help": ["http://b", "https://d:1/e"],
    }


def test_from_the_command_line():
    overrides = ["reward.urls=[help=http://a:5000/x, http://b:5000/x]", "reward.weights=[1, 0.5]"]
    config = load(RLConfig, None, overrides).reward
    assert config.urls == ("help=http://a:5000/x", "http://b:5000/x")
    assert config.weights == (1.0, 0.5)
    check_reward(config)


@pytest.mark.parametrize(
    ("settings", "where", "said"),
    [
        ({}, "reward", "nothing scores the responses"),
        ({"function": "/no/file.py"}, "reward.function", "no such file: /no/file.py"),
        ({"urls": ("localhost:5000",)}, "reward.urls", "not the address of a server"),
        ({"urls": ("ftp://a/b",)}, "reward.urls", "'ftp://a/b'"),
        ({"urls": ("http://",)}, "reward.urls", "'http://'"),
        ({"urls": ("http://a:99999/",)}, "reward.urls", "'http://a:99999/'"),
        ({"urls": ("function=http://a",)}, "reward.urls", "that of reward.function"),
        (
            {"urls": ("http://a", "b=http://c", "http://d"), "weights": (1.0,)},
            "reward.weights",
            "1 weights for 2 sources (remote, b)",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, where, said):
    with pytest.raises(UserError) as caught:
        check_reward(RewardConfig(**settings))
    assert caught.value.where == where
    assert said in caught.value.what
    assert caught.value.fix


def test_scoring_can_be_cancelled_from_another_thread(write):
    slow = write("import time\ndef reward_func(queries, prompts, labels):\n    time.sleep(30)\n")
    with rewards_of(RewardConfig(function=slow), {}) as rewards:
        ended = []

        def score():
            try:
                rewards.score(samples_of("abc"))
            except asyncio.CancelledError:
                ended.append("cancelled")

        thread = threading.Thread(target=score)
        thread.start()
        while rewards._scoring is None:
            time.sleep(0.01)
        rewards.cancel()
        thread.join(10)
        assert ended == ["cancelled"]
