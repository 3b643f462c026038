"""Turns given to engines and taken from them; the engines are threads' work here, without processes."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from megarlhf.cluster.turn_sampling import EngineTurns
from megarlhf.data.records import Prompt, Sample
from megarlhf.errors import UserError


class Lost(Exception):
    """The engine is gone."""


class Engine:
    """Answers a turn with its prompt, when it is let go on; may die at its nth collect."""

    def __init__(self, dies_at=None):
        self.begun, self.open, self.collected, self.dies_at = [], [], 0, dies_at
        self.go_on = threading.Event()
        self.begin = SimpleNamespace(remote=lambda *arguments: lambda: self._begin(*arguments))
        self.collect = SimpleNamespace(remote=lambda client: lambda: self._collect(client))

    def _begin(self, client, turns):
        self.begun.append([turn[1].index for turn in turns])
        self.open += turns

    def _collect(self, client):
        self.go_on.wait(5)
        self.collected += 1
        if self.collected == self.dies_at:
            raise Lost
        done, self.open = self.open[:2], self.open[2:]
        return [
            (key, Sample(prompt, [seed], [0.0], 0, "stop", "")) for key, prompt, _, seed in done
        ]


class Group:
    def __init__(self, *engines):
        self.members, self.repaired = dict(enumerate(engines)), []

    def member(self, number):
        return self.members[number]

    def failures_of(self, calls, timeout_s):
        ((number, call),) = calls.items()
        try:
            return {number: call()}, {}
        except Lost as error:
            return {}, {number: str(error) or "it died"}

    def repair(self, lost, asked):
        (number,) = lost
        if self.members[number] is not asked[number]:
            return
        self.repaired.append(lost)
        if lost[number] == "hopeless":
            raise UserError("engine 0 was lost")
        self.members[number] = Engine()
        self.members[number].go_on.set()


def ask(group, numbers, then=lambda: None):
    async def all_of_them():
        turns = EngineTurns(group, timeout_s=10)
        asking = [
            asyncio.create_task(turns.sample(Prompt(i, "", (1,)), None, 100 + i, number))
            for i, number in enumerate(numbers)
        ]
        await asyncio.sleep(0.05)
        then()
        return await asyncio.gather(*asking, turns.sample(Prompt(9, "", (1,)), None, 109, 0))

    return [sample.response_ids[0] for sample in asyncio.run(all_of_them())]


def test_turns_that_come_together_are_given_together():
    group = Group(Engine(), Engine())

    def go_on():
        for engine in group.members.values():
            engine.go_on.set()

    assert ask(group, [0, 1, 2, 0, 3], go_on) == [100, 101, 102, 103, 104, 109]
    assert group.members[0].begun == [[0, 2, 3], [9]]
    assert group.members[1].begun == [[1, 4]]
    assert group.repaired == []


def test_the_turns_of_a_lost_engine_are_asked_again():
    first = Engine(dies_at=2)
    first.go_on.set()
    group = Group(first)
    assert ask(group, [0] * 5) == [100, 101, 102, 103, 104, 109]
    assert group.repaired == [{0: "it died"}]
    assert sorted(i for turns in group.members[0].begun for i in turns) == [
        2,
        3,
        4,
        9,
    ]  # two had come back


def test_what_ends_the_run_reaches_those_who_wait(monkeypatch):
    engine = Engine(dies_at=1)
    engine.go_on.set()
    group = Group(engine)
    monkeypatch.setattr(Lost, "__str__", lambda self: "hopeless")
    with pytest.raises(UserError, match="engine 0 was lost"):
        ask(group, [0, 0])
