"""The user's Python function as a source of rewards: in this process, or in processes of its own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from megarlhf.config.reward_checks import FUNCTION
from megarlhf.config.schema import RewardConfig
from megarlhf.rewards.function_file import call_reward_function, load_reward_function
from megarlhf.rewards.parts import Policy, score_in_parts
from megarlhf.rewards.scorer import Batch, Scores
from megarlhf.rewards.together import together
from megarlhf.rewards.worker_process import WorkerProcess


def function_scorer(path: str, config: RewardConfig) -> "InProcessScorer | WorkerScorer":
    """The function of a file, run where ``reward.workers`` says."""
    policy = Policy(
        batch_size=config.batch_size,
        retries=config.retries,
        pause_s=0.0,
        stop=config.on_failure == "stop",
    )
    if config.workers == 0:
        return InProcessScorer(path, policy)
    return WorkerScorer(path, policy, config.workers, config.timeout_s)


class InProcessScorer:
    """Calls the function here. One that hangs hangs the run: there is no timeout.

    Args:
        path: The reward's file.
        policy: Sizes and retries.
    """

    name = FUNCTION

    def __init__(self, path: str, policy: Policy) -> None:
        self.where, self._policy = path, policy

    def check(self) -> None:
        """Load the file."""
        self._function = load_reward_function(self.where)

    async def start(self) -> None:
        """Nothing to start."""

    async def score(self, batch: Batch) -> Scores:
        """Score a batch, one call after the other."""
        one_at_a_time = asyncio.Lock()

        async def call(part: Batch) -> Scores:
            async with one_at_a_time:
                return await call_reward_function(self._function, part)

        return await score_in_parts(batch, call, 1, self._policy)

    async def close(self) -> None:
        """Nothing to end."""


class WorkerScorer:
    """Calls the function in worker processes, which are killed and replaced when they hang.

    Args:
        path: The reward's file.
        policy: Sizes and retries.
        workers: Number of processes.
        timeout_s: The longest a call may take.
    """

    name = FUNCTION

    def __init__(self, path: str, policy: Policy, workers: int, timeout_s: float) -> None:
        self.where, self._policy = path, policy
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="reward-worker")
        self._workers = [WorkerProcess(path, timeout_s, self._threads) for _ in range(workers)]

    def check(self) -> None:
        """Load the file in this process too: what is wrong with it is known before any starts."""
        load_reward_function(self.where)

    async def start(self) -> None:
        """Start the processes, all at once."""
        await together(worker.start() for worker in self._workers)
        self._idle: asyncio.Queue[WorkerProcess] = asyncio.Queue()
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def score(self, batch: Batch) -> Scores:
        """Score a batch, a part in each process at a time."""
        return await score_in_parts(batch, self._call, len(self._workers), self._policy)

    async def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()

    async def _call(self, part: Batch) -> Scores:
        worker = await self._idle.get()
        try:
            return await worker.call(part)
        finally:
            self._idle.put_nowait(worker)
