"""Ranks that fail: what is said of them, and that the next run finds new ones."""

import os
import time

import pytest

from megarlhf.errors import UserError
from megarlhf.parallel.pool import RankFailure, RankPool


def answer(rank, world, value):
    return rank, world, value, os.getpid()


def refuse(rank, world):
    raise UserError("no such file", where="here")


def die(rank, world):
    print("about to die", flush=True)
    os._exit(9)


def hang(rank, world):
    time.sleep(3600)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_process_answers_dies_is_replaced_and_hangs(tmp_path):
    with RankPool(timeout_s=120, log_directory=tmp_path) as pool:
        ((rank, world, value, first),) = pool.run(1, answer, "a")
        assert (rank, world, value) == (0, 1, "a")
        assert pool.run(1, answer, "b") == [(0, 1, "b", first)]
        with pytest.raises(RankFailure, match=r"rank 0: the process died \(exit code 9\)") as died:
            pool.run(1, die)
        assert "about to die" in str(died.value)
        ((*_, second),) = pool.run(1, answer, "c")
        assert second != first
        pool.timeout_s = 1
        with pytest.raises(RankFailure, match="rank 0: no answer within 1 s"):
            pool.run(1, hang)
        assert not alive(second)


def test_a_users_error_arrives_as_the_cause(ranks):
    with pytest.raises(RankFailure, match="ranks 0, 1: Traceback") as failure:
        ranks.run(2, refuse)
    assert str(failure.value.__cause__) == "here: no such file"
