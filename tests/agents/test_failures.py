"""Agents that raise, hang or take their process with them."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megarlhf.agents.user_agent import load_agent, load_program
from megarlhf.errors import UserError
from tests.agents.conftest import SAMPLING, Parrot

ONE = replace(SAMPLING, samples=1)

# What happens depends on what the model says, which is the prompt here.
MOODY = """
import asyncio, os, time
class Agent:
    async def step(self, action):
        if action.text == "wait": await asyncio.sleep(100)
        if action.text == "block": time.sleep(100)
        return await asyncio.to_thread(self.rest, action)
    def rest(self, action):
        if action.text == "exit": os._exit(3)
        if action.text == "raise": raise ValueError("not this")
        return {"reward": 1, "done": True}
"""
HANGS = """
import time
class Agent:
    def step(self, action):
        if action.text == "sleep": time.sleep(100)
        while action.text == "loop": pass
        return {"reward": 1, "done": True}
"""


def again(text):
    return text


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (MOODY, "raise", "Agent.step raised ValueError('not this') (agent.py:10) in turn 1"),
        (MOODY, "wait", "Agent.step did not return within 0.3 s in turn 1"),
        (MOODY, "exit", "its process ended (exit status 3) in turn 1"),
        (HANGS, "sleep", "Agent.step did not return within 0.3 s in turn 1"),
        (HANGS, "loop", "Agent.step did not return within 0.3 s in turn 1"),
    ],
)
def test_the_episode_that_fails_is_found_and_costs_no_other(write, play, file, text, said):
    settings = {"timeout_s": 20.0 if text in ("raise", "exit") else 0.3, "retries": 1}
    settings |= {"sampler": Parrot(again), "on_failure": "drop", "sampling": ONE}
    done = play(write(file), "a", text, "b", **settings)
    assert [[one.reward for one in group] for group in done.groups] == [[1], [None], [1]]
    assert (done.tally.samples, done.tally.dropped) == (3, 1)
    assert done.tally.retries >= 1  # with the process, others are begun again
    assert said in done.tally.failure
    with pytest.raises(UserError, match=r"agent\.on_failure=drop: 1 of 3"):
        done.tally.check(1)


def test_a_failure_that_ends_the_run_is_shown(write, play):
    with pytest.raises(UserError) as caught:
        play(write(MOODY), "a", "raise", "b", sampler=Parrot(again), retries=1)
    what = caught.value.what
    assert "Agent.step raised ValueError('not this') (agent.py:10)" in what
    assert "after 'raise' for the prompt 'raise'" in what
    assert 'line 10, in rest\n    if action.text == "raise"' in what
    assert "agent.on_failure=drop" in caught.value.fix


def test_a_process_whose_loop_hangs_is_replaced(write, play, monkeypatch):
    """It ends itself; a second method that blocks the loop is found by itself."""
    for name in ("megarlhf.agents.process.GRACE_S", "megarlhf.agents.process.BEAT_S"):
        monkeypatch.setattr(name, 0.0)
    settings = {"sampler": Parrot(again), "timeout_s": 0.5, "retries": 0, "on_failure": "drop"}
    done = play(write(MOODY), "a", "block", sampling=ONE, **settings)
    assert [[one.reward for one in group] for group in done.groups] == [[1], [None]]
    assert "its process did not answer within" in done.tally.failure


def test_a_failure_that_passes(write, play):
    file = write(
        "import pathlib\n"
        "COUNT = pathlib.Path(__file__ + '.count')\n"
        "class Agent:\n"
        "    def step(self, action):\n"
        "        calls = int(COUNT.read_text()) if COUNT.exists() else 0\n"
        "        COUNT.write_text(str(calls + 1))\n"
        "        if calls < 2: raise ConnectionError('no shell')\n"
        "        return {'reward': 1.0, 'done': True}\n"
    )
    done = play(file, "a", concurrency=1, retries=2)
    assert [one.reward for one in done.groups[0]] == [1, 1]
    assert done.tally.retries == 2


def test_where_nothing_works_the_run_ends(write, play):
    file = write("class Agent:\n    def step(self, action): raise KeyError\n")
    settings = {"retries": 0, "on_failure": "drop"}
    assert play(file, *"abcd", **settings).tally.dropped == 8
    with pytest.raises(UserError, match=r"Agent\.step raised KeyError"):
        play(file, *"abcde", **settings)


@pytest.mark.parametrize(
    ("load", "text", "said"),
    [
        (load_agent, "import no_such_module", "No module named 'no_such_module'"),
        (load_agent, "class Agent: pass", "no class Agent with a method step"),
        (load_agent, "class Agent:\n    def step(self): pass", r"as Agent.step\(action\)"),
        (
            load_agent,
            "class Agent:\n    def __init__(self, a): pass\n    def step(self, a): pass",
            r"cannot be called as Agent\(\)",
        ),
        (load_program, "", "no function run"),
        (load_program, "def run(prompt): pass", r"as run\(prompt, label, base_url, api_key\)"),
    ],
)
def test_files_that_do_not_suit(write, load, text, said):
    with pytest.raises(UserError, match=said):
        load(write(text))


def test_a_worker_starts_without_torch():
    code = "import sys, megarlhf.agents.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_process_is_left(write, play):
    file = write(
        "import os\n"
        "class Agent:\n"
        "    def step(self, action): return {'reward': os.getpid(), 'done': True}\n"
    )
    done = play(file, *"abcd", workers=2)
    pids = {int(one.reward) for group in done.groups for one in group}
    assert len(pids) == 2
    assert os.getpid() not in pids
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.02)
    raise AssertionError(f"{pids} are there")
