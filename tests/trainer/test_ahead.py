"""Rollouts made ahead of training: never too far, in their order, and what happens when one fails."""

import threading
import time
from contextlib import contextmanager, nullcontext

import pytest

from megarlhf.errors import UserError
from megarlhf.trainer.ahead import Ahead
from megarlhf.trainer.rollouts import Rollout
from tests.trainer.made_up import sample_of

LONG = 30.0  # seconds that nothing here may take


def ahead(make, *, steps=1, total=8, give_up=lambda: None):
    return Ahead(make, steps, total, lambda name: nullcontext(), give_up)


def rollout(number, version=0):
    return Rollout(number, [[sample_of(number, version)]], {})


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_rollouts_come_in_order_and_none_begins_too_early(steps):
    version, begun_at, waiting = 0, {}, []

    def make(number, phase):
        begun_at[number] = version
        return rollout(number, version)

    with ahead(make, steps=steps) as source:
        source.start(0)
        for number in range(8):
            waiting.append(source.take(number).metrics["queue_length"])
            expected = min(number + steps, 7)
            while expected not in begun_at and steps:  # it gets as far as it may, and no further
                time.sleep(0.001)
            time.sleep(0.002)
            assert max(begun_at) == expected
            version += 1
            source.has_weights(version, version)
    assert begun_at == {number: max(0, number - steps) for number in range(8)}
    assert max(waiting) <= steps


def test_a_rollout_says_how_old_it_is_and_how_long_it_took():
    def make(number, phase):
        with phase("generate"):
            time.sleep(0.02)
        made = rollout(number)
        made.groups[0][0].version_spans = [(3, 1), (4, 4)]  # one token, then three
        made.groups.append([sample_of(0, 5), sample_of(1, 5)])
        return made

    with ahead(make, steps=2) as source:
        source.start(5)
        metrics = source.take(5).metrics
    assert metrics["staleness_max"] == 2
    assert metrics["staleness_mean"] == (2 + 3 * 1 + 0 * 8) / 12
    assert 0.02 <= metrics["sampler_seconds_generate"] < LONG
    assert metrics["sampler_seconds_wait"] < 0.02


def test_steps_without_an_update_age_nothing():
    with ahead(lambda number, phase: rollout(number, version=0), steps=1) as source:
        source.start(0)
        source.take(0)
        source.has_weights(1, 0)
        assert source.take(1).metrics["staleness_max"] == 0
        source.has_weights(2, 2)
        assert source.take(2).metrics["staleness_max"] == 2


def failing(number, phase):
    if number == 1:
        raise UserError("the function raised", where="reward.py")
    return rollout(number)


def test_an_error_interrupts_the_training():
    began = time.monotonic()
    with pytest.raises(UserError, match="the function raised"), ahead(failing) as source:
        source.start(0)
        source.take(0)
        time.sleep(LONG)  # it trains
    assert time.monotonic() - began < LONG / 2


def test_an_error_interrupts_the_waiting():
    with pytest.raises(UserError, match="the function raised"), ahead(failing) as source:
        source.start(0)
        source.take(0)
        source.take(1)


def test_an_error_lets_a_checkpoint_be_written():
    saving, written = threading.Event(), False

    def make(number, phase):
        assert number == 0 or saving.wait(LONG)
        return failing(number, phase)

    with pytest.raises(UserError, match="the function raised"), ahead(make) as source:
        source.start(0)
        source.take(0)
        with source.undisturbed():
            saving.set()
            source._thread.join(LONG)
            time.sleep(0.01)
            written = True
        source.take(1)
    assert written


def test_what_is_being_made_is_given_up_at_the_end():
    gave_up = threading.Event()

    def make(number, phase):
        if number == 0:
            return rollout(number)
        assert gave_up.wait(LONG)
        raise UserError("the engine was killed")

    with ahead(make, give_up=gave_up.set) as source:
        source.start(0)
        source.take(0)
    assert gave_up.is_set()
    assert not source._thread.is_alive()


def test_nothing_is_given_up_where_all_is_made():
    def give_up():
        raise AssertionError

    with ahead(lambda number, phase: rollout(number), total=2, give_up=give_up) as source:
        source.start(0)
        source.take(0)
        source.take(1)


def test_the_main_thread_repairs_when_it_has_trained():
    repaired_by, training = [], threading.Event()

    def make(number, phase):
        if number == 1:
            assert training.wait(LONG)
            source.on_main_thread(lambda: repaired_by.append(threading.current_thread()))
        return rollout(number)

    with ahead(make) as source:
        source.start(0)
        source.take(0)
        training.set()
        time.sleep(0.02)
        assert repaired_by == []
        source.has_weights(1, 1)
        source.take(1)
        assert repaired_by == [threading.main_thread()]
        source.on_main_thread(lambda: repaired_by.append(None))  # of an evaluation: at once
        assert repaired_by[1:] == [None]


def test_who_waits_for_a_repair_is_let_go_at_the_end():
    asked = threading.Event()

    def make(number, phase):
        asked.set()
        source.on_main_thread(lambda: None)

    with ahead(make) as source:
        source.start(0)
        assert asked.wait(LONG)
    assert not source._thread.is_alive()


def test_waiting_is_timed():
    names = []

    @contextmanager
    def phase(name):
        names.append(name)
        yield

    with Ahead(lambda number, _: rollout(number), 1, 1, phase, lambda: None) as source:
        source.start(0)
        source.take(0)
    assert names == ["wait"]
