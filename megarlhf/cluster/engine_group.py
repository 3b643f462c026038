"""The vLLM engines, each a process of its own: prompts are shared out, weights reach all of them.

An engine that dies or does not answer in time is replaced, brought to the version of the others and
given its prompts again: see `replace`. Other threads than the one that drives the trainer may sample.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from megarlhf.cluster.device_turns import by_turns_on_gpus
from megarlhf.cluster.failures import wait_for_all
from megarlhf.cluster.lost_engines import failures_of
from megarlhf.cluster.processes import Processes, Recipe
from megarlhf.cluster.stream_links import StreamLinks
from megarlhf.cluster.verification import Verification
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.rollout.cpu_kernels import check_kernels
from megarlhf.rollout.engine import VllmEngine
from megarlhf.rollout.settings import EngineSettings, Sampling, engine_environment


class EngineGroup:
    """Every engine of a run.

    Args:
        config: The run's configuration.
        settings: What each engine is built with.
        processes: Where they run.
        note: Tells the user what happened to an engine.

    Raises:
        UserError: The engines cannot sample from the model.

    Attributes:
        members: The engines' handles, by number.
        version: Of the weights that they sample from; None until the first update.
        restarts: Engines replaced so far.
        repairs: Runs what it is given, and returns then: a repair, found to be needed while sampling,
            which calls the trainer's ranks.
    """

    def __init__(
        self,
        config: RLConfig,
        settings: EngineSettings,
        processes: Processes,
        note: Callable[[str], None] = print,
    ) -> None:
        self._config, self._processes, self._note = config, processes, note
        rollout = config.rollout
        if not processes.on_gpu:
            check_kernels(
                ModelSpec.read(config.model.path),
                ranks=rollout.tensor_parallel,
                whole_experts=rollout.expert_parallel,
            )
        environment = engine_environment(
            rollout.kv_cache_gib, on_gpu=processes.on_gpu, packed=rollout.packed_weights
        )
        # Several calls at a time: rollouts, an evaluation and an update.
        self._recipe = Recipe(VllmEngine, (settings,), environment, concurrency=8)
        self.members: dict[int, Any] = {}
        for number in range(rollout.engines):
            self.members[number] = processes.engine(number, self._recipe)
        self._alone = by_turns_on_gpus(config, on_gpu=processes.on_gpu)
        self.version: int | None = None
        self.restarts = 0
        self.repairs: Callable[[Callable[[], None]], None] = lambda repair: repair()
        self._replacing = threading.RLock()  # held until those who are new have their weights
        self._verification = Verification(config.stream, processes)

    def start(self) -> None:
        """Wait until every engine has loaded its model."""
        self._wait_until_ready(self.members)

    def connect(self, trainer: WorkerGroup) -> None:
        """Open the stream between the trainer's ranks and every engine."""
        self._trainer = trainer
        self._links = StreamLinks(self._config, trainer, self._processes)
        self._links.open(self.members)

    # -- sampling ---------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Samples for every prompt, in order; prompts are dealt to the engines in turn.

        Those of an engine that is lost meanwhile are asked again of the one that replaces it.
        """
        count = len(self.members)
        answers: dict[int, list[list[Sample]]] = {}
        while missing := sorted(set(self.members) - set(answers)):
            with self._replacing:
                asked = {number: self.members[number] for number in missing}
            shares = {
                number: member.generate.remote(
                    list(prompts[number::count]), sampling, list(seeds[number::count])
                )
                for number, member in asked.items()
            }
            found, lost = self.failures_of(shares, self._config.rollout.timeout_s)
            answers |= found
            if lost:
                self.repair(lost, asked)
        return [answers[i % count][i // count] for i in range(len(prompts))]

    # -- weights ----------------------------------------------------------------------------------

    def update(self, version: int) -> int:
        """Stream the trainer's weights into every engine; returns the bytes sent.

        Raises:
            UserError: An engine does not have what was sent (`stream.verify`), or too many were lost.
        """
        self.version = version
        # One that died since the last update would keep the trainer's ranks waiting.
        there = {number: member.process_id.remote() for number, member in self.members.items()}
        _, lost = self.failures_of(there, self._config.cluster.stream_timeout_s)
        self.replace(lost, f"before the update to version {version}")
        return self._stream(sorted(set(self.members) - set(lost)))

    def _stream(self, numbers: list[int]) -> int:
        if not numbers:
            return 0
        receiving = {n: self.members[n].update_weights.remote(self.version) for n in numbers}
        # A rank that waits in vain ends by itself, after stream_timeout_s for each engine at most.
        sent = self._trainer.run("stream", numbers)
        lost = {
            number: f"{on_rank[number].error} (rank {rank})"
            for rank, on_rank in enumerate(sent)
            for number in numbers
            if on_rank[number].error is not None
        }
        rest = {number: call for number, call in receiving.items() if number not in lost}
        lost |= self.failures_of(rest, self._config.cluster.stream_timeout_s)[1]
        if alive := {number: self.members[number] for number in rest if number not in lost}:
            self._verification.after_update(self._trainer, alive)
        self.replace(lost, f"in the update to version {self.version}")
        return sum(one.nbytes for on_rank in sent for one in on_rank.values())

    # -- memory -----------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Let every engine give back the memory of its weights and KV cache."""
        self._tell(self.members, "sleep")

    def wake(self, part: str) -> None:
        """Let every engine have memory for ``weights`` or for the ``kv_cache`` again."""
        self._tell(self.members, "wake", part)

    def _tell(self, members: dict[int, Any], method: str, *args: str) -> None:
        calls = [getattr(member, method).remote(*args) for member in members.values()]
        wait_for_all(calls, self._processes)

    # -- faults -----------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Nothing to cancel: see `end`."""

    def member(self, number: int) -> Any:
        """An engine's handle, once it has its weights."""
        with self._replacing:
            return self.members[number]

    def repair(self, lost: dict[int, str], asked: dict[int, Any]) -> None:
        """Replace engines that gave no answer; from the thread that samples.

        Args:
            lost: Number to what happened.
            asked: The handles that were asked, by number.
        """
        self.repairs(partial(self._replace_asked, lost, asked))

    def end(self) -> None:
        """End all engines: what waits for them fails."""
        for member in self.members.values():
            self._processes.kill(member)

    def _replace_asked(self, lost: dict[int, str], asked: dict[int, Any]) -> None:
        """Replace those that gave no answer, unless an update has found that out before."""
        still = {n: why for n, why in lost.items() if self.members[n] is asked[n]}
        self.replace(still, "while sampling")
        if still and self._alone:  # an update would do this
            self._trainer.make_room()
            self._tell({number: self.members[number] for number in still}, "wake", "kv_cache")

    def replace(self, lost: dict[int, str], when: str) -> None:
        """Start engines anew in place of some, with the weights of the current version.

        Args:
            lost: Number to what happened.
            when: It happened.

        Raises:
            UserError: ``stream.restarts`` are used up.
        """
        if not lost:
            return
        with self._replacing:
            if self._alone:
                self._trainer.make_room()
            for number, why in lost.items():
                self._start_anew(number, f"engine {number} was lost {when}: {why}")
            new = {number: self.members[number] for number in lost}
            self._wait_until_ready(new)
            if self._alone:
                self._tell(new, "sleep")
                self._tell(new, "wake", "weights")
            self._links.open(new)
            if self.version is not None:
                self._stream(sorted(new))

    def _start_anew(self, number: int, why: str) -> None:
        if self.restarts >= self._config.stream.restarts:
            raise UserError(
                f"{why}; {self.restarts} were replaced before",
                where="stream.restarts",
                fix="look for the cause above; the same command goes on from the newest checkpoint",
            )
        self.restarts += 1
        self._note(f"{why:.340}; starting it anew")
        self._processes.kill(self.members[number])
        self.members[number] = self._processes.engine(number, self._recipe)

    def _wait_until_ready(self, members: dict[int, Any]) -> None:
        ready = [member.ready.remote() for member in members.values()]
        wait_for_all(ready, self._processes, self._config.cluster.start_timeout_s)

    def failures_of(
        self, calls: dict[int, Any], timeout_s: float
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """What calls of engines returned, by engine, and why the others did not: see `lost_engines`."""
        return failures_of(calls, timeout_s, self._processes)
