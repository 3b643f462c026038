"""Episodes with an environment: tokens, masks, limits, rewards."""

import asyncio
from dataclasses import replace

import pytest

from megarlhf.errors import UserError
from tests.agents.conftest import SAMPLING, STOP, Parrot

ECHO = """
class Agent:
    def __init__(self):
        self.heard = []
    async def reset(self, prompt, label):
        self.heard.append(label)
        return "<" + prompt
    def step(self, action):
        self.heard.append(action.text)
        logs = {"turn": action.turn}
        if len(self.heard) == 3:
            return {"reward": 1.5, "done": True, "score": 0.25, "extra_logs": logs}
        return {"observation": "why?", "reward": 0.5, "done": False, "extra_logs": logs}
"""


def ids(text):
    return [ord(c) for c in text]


def test_the_sequence_is_what_was_sampled_and_what_the_environment_said(write, play):
    say = {"<ab": "x", "<abxwhy?": "yz"}.get
    done = play(write(ECHO), "ab", has_reset=True, sampler=Parrot(say))
    for sample in done.groups[0]:
        assert list(sample.prompt.token_ids) == ids("<ab")
        assert sample.prompt.label == "label ab"
        assert sample.response_ids == [ord("x"), STOP, *ids("why?"), *ids("yz"), STOP]
        assert sample.mask == [1, 1, 0, 0, 0, 0, 1, 1, 1]
        assert sample.rollout_logprobs == [-1, -2, 0, 0, 0, 0, -1, -2, -3]
        assert sample.version_spans == [(3, 9)]
        assert (sample.text, sample.finish_reason) == ("x\0why?yz\0", "stop")
        assert (sample.reward, sample.score, sample.sampled) == (2.0, 0.25, 5)
        assert (sample.episode.turns, sample.episode.ended) == (2, "done")
    assert done.tally.metrics() == {
        "reward_dropped": 0.0,
        "reward_retries": 0.0,
        "reward_from_agent": 2.0,
        "agent_turns": 2.0,
        "agent_done": 1.0,
        "agent_out_of_turns": 0.0,
        "agent_out_of_tokens": 0.0,
        "extra_agent_turn": 1.5,
    }
    # Token in, token out; the first turn has the seed of a response without an agent.
    assert [asked[0] for asked in done.asked[2:]] == [[*ids("<abx"), STOP, *ids("why?")]] * 2
    seeds = [asked[2] for asked in done.asked]
    assert sorted(seeds[:2]) == [0, 1]
    assert len(set(seeds)) == 4
    assert play(write(ECHO), "ab", has_reset=True).asked[2][2] in seeds  # the same again


def test_a_template_for_observations(write, play):
    sampling = replace(SAMPLING, samples=1)
    done = play(write(ECHO), "ab", has_reset=True, sampling=sampling, template="[{}]")
    assert done.groups[0][0].text == "ok\0[why?]ok\0"


NEVER_DONE = """
class Agent:
    def step(self, action):
        return {"observation": [65] * 5, "reward": 1, "done": False}
"""


@pytest.mark.parametrize(
    ("settings", "room", "ended", "length", "last_limit"),
    [
        ({"max_turns": 3}, 32, "turns", 3 * 3 + 2 * 5, 32 - 16),
        ({}, 21, "tokens", 19, 5),  # no room for the third observation
        ({}, 18, "tokens", 18, 2),  # the third answer is cut
        ({"max_turns": 2, "max_turn_tokens": 2}, 32, "turns", 2 * 2 + 5, 2),
    ],
)
def test_limits(write, play, settings, room, ended, length, last_limit):
    sampling = replace(SAMPLING, samples=1, max_new_tokens=room)
    done = play(write(NEVER_DONE), "ab", sampling=sampling, **settings)
    (sample,) = done.groups[0]
    assert sample.episode.ended == ended
    assert len(sample.response_ids) == length
    assert sample.mask[-1] == 1  # nothing is behind what was sampled last
    assert done.asked[-1][1].max_new_tokens == last_limit
    is_cut = ended == "tokens" or "max_turn_tokens" in settings
    assert sample.finish_reason == ("length" if is_cut else "stop")
    assert sample.reward == sample.episode.turns


def test_a_slow_environment_holds_nobody_up(write, play):
    """The second prompt's episodes end while the first's wait in their first step."""
    file = write(
        "import time\n"
        "class Agent:\n"
        "    def step(self, action):\n"
        "        if action.prompt == 'slow' and action.turn == 1: time.sleep(0.5)\n"
        "        done = action.turn == 4\n"
        "        return {'observation': '!', 'reward': 1.0, 'done': done}\n"
    )
    done = play(file, "slow", "b")
    assert [asked[3] for asked in done.asked] == [0, 0, *[1] * 8, *[0] * 6]
    assert [sample.reward for group in done.groups for sample in group] == [4.0] * 4


def test_at_most_so_many_episodes_at_a_time(write, play):
    now, most = 0, 0

    async def before(prompt):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1

    file = write("class Agent:\n    def step(self, action): return {'reward': 0, 'done': True}\n")
    play(file, *"abcd", sampler=Parrot(before=before), concurrency=3)
    assert most == 3


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "Agent.step returned None, not a dictionary"),
        ("{'reward': 1.0}", "without 'done': true or false"),
        ("{'done': True}", "no 'reward', and the episode is done"),
        ("{'done': False, 'reward': 1}", "no 'observation', and the episode is not done"),
        ("{'done': True, 'reward': float('nan')}", "Agent.step returned nan"),
        ("{'done': True, 'rewards': 1}", "the key 'rewards'; known are done, extra_logs"),
        ("{'done': False, 'observation': 3}", "neither a text nor token ids"),
        ("{'done': False, 'observation': [256]}", "has the id 256; the model knows 256"),
    ],
)
def test_what_a_step_must_return(write, play, returned, said):
    file = write(f"class Agent:\n    def step(self, action): return {returned}\n")
    with pytest.raises(UserError) as caught:
        play(file, "ab", retries=0)
    assert said in caught.value.what
    assert "for the prompt 'ab'" in caught.value.what


def test_a_prompt_that_is_too_long(write, play):
    with pytest.raises(UserError, match=r"returned 4 tokens, more than data.max_prompt_tokens=3"):
        play(write(ECHO), "abc", has_reset=True, limit=3, retries=0)
