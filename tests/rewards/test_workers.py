import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megarlhf.config.schema import RewardConfig
from megarlhf.errors import UserError
from megarlhf.rewards.sources import rewards_of
from tests.rewards.conftest import rewards_in, samples_of

LENGTHS = (
    "def reward_func(queries, prompts, labels):\n    return [float(len(q)) for q in queries]\n"
)

# What happens depends on the text of the response.
MOODY = """
import os, signal, subprocess, sys, time
def reward_func(queries, prompts, labels):
    for query in queries:
        if "hang" in query:
            with open(__file__ + ".pids", "a") as file:
                child = subprocess.Popen(["sleep", "60"])
                print(os.getpid(), child.pid, file=file)
            time.sleep(60)
        if "die" in query: os.kill(os.getpid(), signal.SIGKILL)
        if "exit at once" in query: os._exit(3)
        if "exit" in query: sys.exit(3)
        if "raise" in query: raise ValueError(query)
        if "nan" in query: return [float("nan")] * len(queries)
    return [1.0] * len(queries)
"""


def pids(file):
    return {int(pid) for pid in Path(f"{file}.pids").read_text().split()}


def gone(pid):
    """Within a moment: a killed grandchild is reaped by someone else."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_response_in_its_place(write, score, workers):
    texts = ["x" * n for n in range(10)]
    samples, metrics = score(texts, function=write(LENGTHS), workers=workers, batch_size=4)
    assert rewards_in(samples) == [3.0 + n for n in range(10)]
    assert metrics == {"reward_from_function": 7.5, "reward_dropped": 0.0, "reward_retries": 0.0}


def test_processes_are_shared_out_and_stay(write):
    file = write(
        "import os, time\n"
        "def reward_func(queries, prompts, labels):\n"
        "    time.sleep(0.1)\n"
        "    return [float(os.getpid())] * len(queries)\n"
    )
    with rewards_of(RewardConfig(function=file, workers=2)) as rewards:
        first, second = samples_of(*"abcd"), samples_of(*"abcd")
        rewards.score(first)
        rewards.score(second)
    assert len(set(rewards_in(first))) == 2
    assert os.getpid() not in rewards_in(first)
    assert set(rewards_in(first)) == set(rewards_in(second))
    assert all(gone(int(pid)) for pid in set(rewards_in(first)))


def test_a_child_that_comes_back_answers_nothing(write, score):
    file = write(
        "import os, sys\n"
        "def reward_func(queries, prompts, labels):\n"
        "    if os.fork() == 0: sys.exit()\n"
        "    os.wait()\n"
        "    return [float(len(q)) for q in queries]\n"
    )
    samples, metrics = score(["x" * n for n in range(4)], function=file, batch_size=1)
    assert rewards_in(samples) == [3.0, 4.0, 5.0, 6.0]
    assert metrics["reward_retries"] == 0


def test_an_async_function_keeps_its_event_loop(write, score):
    file = write(
        "import asyncio\n"
        "LOCK, LOOPS = asyncio.Lock(), set()\n"
        "async def reward_func(queries, prompts, labels):\n"
        "    async with LOCK:\n"
        "        await asyncio.sleep(0.01)\n"
        "    LOOPS.add(asyncio.get_running_loop())\n"
        "    return {'rewards': [float(len(LOOPS))] * len(queries), 'scores': [0.5] * len(queries)}\n"
    )
    samples, _ = score("abc", function=file, batch_size=1)
    assert rewards_in(samples) == [1.0] * 3
    assert [sample.score for sample in samples] == [0.5] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hang", "did not return within 1 s"),
        ("die", "ended its process (SIGKILL)"),
        ("exit at once", "ended its process (exit status 3)"),
        ("exit", "raised SystemExit(3) (reward.py:12)"),
        ("raise", "raised ValueError('p1:raise') (reward.py:13)"),
        ("nan", "returned nan"),
    ],
)
def test_the_response_that_fails_is_found(write, score, text, said):
    file = write(MOODY)
    retries = 0 if text == "hang" else 1  # each would take its second
    settings = {"function": file, "timeout_s": 1.0 if text == "hang" else 60.0, "retries": retries}
    with pytest.raises(UserError) as caught:
        score(["a", text, "b"], **settings)
    assert caught.value.where == file
    assert f"reward_func {said}" in caught.value.what
    assert f"for the prompt 'p1:' and the response {text!r}" in caught.value.what
    assert "reward.on_failure=drop" in caught.value.fix

    samples, metrics = score(["a", text, "b"], on_failure="drop", **settings)
    assert rewards_in(samples) == [1.0, None, 1.0]
    assert [sample.score for sample in samples] == [1.0, None, 1.0]
    assert metrics["reward_dropped"] == 1
    assert metrics["reward_retries"] == retries
    assert metrics["reward_from_function"] == 1
    if text == "hang":
        assert all(gone(pid) for pid in pids(file))


def test_in_this_process_too(write, score):
    settings = {"function": write(MOODY), "workers": 0, "retries": 0}
    with pytest.raises(UserError, match=r"raised ValueError.*prompt 'p2:'"):
        score(["a", "b", "raise"], **settings)
    samples, _ = score(["a", "b", "raise"], on_failure="drop", **settings)
    assert rewards_in(samples) == [1.0, 1.0, None]


def test_a_failure_that_passes(write, score):
    file = write(
        "import pathlib\n"
        "COUNT = pathlib.Path(__file__ + '.count')\n"
        "def reward_func(queries, prompts, labels):\n"
        "    calls = int(COUNT.read_text()) if COUNT.exists() else 0\n"
        "    COUNT.write_text(str(calls + 1))\n"
        "    if calls < 3: raise ConnectionError('judge')\n"
        "    return [1.0] * len(queries)\n"
    )
    samples, metrics = score("a", function=file, retries=3)
    assert rewards_in(samples) == [1.0]
    assert metrics["reward_retries"] == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_where_nothing_works_the_run_ends(write, score, workers):
    file = write("def reward_func(queries, prompts, labels):\n    return []\n")
    settings = {"function": file, "workers": workers, "retries": 0, "on_failure": "drop"}
    assert score("abc", **settings)[1]["reward_dropped"] == 3
    with pytest.raises(UserError, match="0 values for 1 responses"):
        score("a" * 1000, **settings)


def test_a_large_batch(write, score):
    samples, _ = score(["x" * 1_000_000] * 3, function=write(LENGTHS))
    assert rewards_in(samples) == [1_000_003.0] * 3


def test_a_function_may_start_processes(write, score):
    file = write(
        "import multiprocessing\n"
        "def reward_func(queries, prompts, labels):\n"
        "    with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "        return pool.map(float, labels)\n"
    )
    assert rewards_in(score("ab", function=file)[0]) == [0.0, 1.0]


def test_a_file_that_does_not_load_in_the_process(write):
    file = write("import os, sys\nif 'colorsys' not in sys.modules: os._exit(7)\n" + LENGTHS)
    import colorsys  # noqa: F401  (there is none in a new process)

    rewards = rewards_of(RewardConfig(function=file))
    rewards.check()
    with pytest.raises(UserError, match="exit status 7") as caught, rewards:
        pass
    assert caught.value.where == file


def test_a_file_that_does_not_load(write):
    file = write("import no_such_module\n")
    with pytest.raises(UserError, match="No module named 'no_such_module'"):
        rewards_of(RewardConfig(function=file)).check()
    with (
        pytest.raises(UserError, match="No module named 'no_such_module'"),
        rewards_of(RewardConfig(function=file, workers=2)),
    ):
        pass


def test_a_killed_process_is_replaced(write):
    file = write(
        "import os\n"
        "def reward_func(queries, prompts, labels):\n"
        "    return [float(os.getpid())] * len(queries)\n"
    )
    with rewards_of(RewardConfig(function=file)) as rewards:
        before, after = samples_of("a"), samples_of("a")
        rewards.score(before)
        os.kill(int(before[0].reward), 9)
        tally = rewards.score(after)
    assert after[0].reward != before[0].reward
    assert tally.retries == 1


def test_nothing_to_score(write, score):
    assert score([], function=write(LENGTHS))[1]["reward_dropped"] == 0


def test_a_worker_starts_without_torch():
    code = "import sys, megarlhf.rewards.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_killed_owner_leaves_no_process(write):
    file = write(
        "import os, time\n"
        "def reward_func(queries, prompts, labels):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(1)\n"
    )
    code = (
        "from megarlhf.config.schema import RewardConfig\n"
        "from megarlhf.rewards.sources import rewards_of\n"
        "from tests.rewards.conftest import samples_of\n"
        f"with rewards_of(RewardConfig(function={file!r})) as rewards:\n"
        "    rewards.score(samples_of('a'))\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(owner.stdout.readline())
    owner.kill()
    owner.communicate()
    assert gone(worker)
