"""The vLLM engines as Ray actors: prompts are shared out, weights reach all of them."""

from collections.abc import Sequence

import ray

from megarlhf.cluster.ray_cluster import QUIET, have_gpus
from megarlhf.cluster.worker_group import WorkerGroup, wait_for_all
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.rollout.engine import VllmEngine
from megarlhf.rollout.settings import EngineSettings, Sampling, engine_environment


class EngineGroup:
    """Every engine of a run.

    Args:
        config: The run's configuration.
        settings: What each engine is built with.
    """

    def __init__(self, config: RLConfig, settings: EngineSettings) -> None:
        rollout = config.rollout
        on_gpu = have_gpus()
        resources = (
            {"num_gpus": rollout.tensor_parallel}
            if on_gpu
            else {"num_cpus": float(rollout.tensor_parallel)}
        )
        environment = QUIET | engine_environment(rollout.kv_cache_gib, on_gpu=on_gpu)
        remote = ray.remote(VllmEngine).options(**resources, runtime_env={"env_vars": environment})
        self._timeout = config.cluster.start_timeout_s
        self.members = [remote.remote(settings) for _ in range(rollout.engines)]

    def start(self) -> None:
        """Wait until every engine has loaded its model."""
        ray.get([member.ready.remote() for member in self.members], timeout=self._timeout)

    def connect(self, trainer: WorkerGroup) -> None:
        """Open the stream between the trainer's ranks and every engine."""
        infos = ray.get(trainer.members[0].offer_stream.remote(trainer.host))
        joining = [
            member.join_stream.remote(info.as_dict())
            for member, info in zip(self.members, infos, strict=True)
        ]
        wait_for_all([*trainer.call("open_stream", infos), *joining])

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Samples for every prompt, in order; prompts are dealt to the engines in turn."""
        count = len(self.members)
        shares = [
            member.generate.remote(list(prompts[i::count]), sampling, list(seeds[i::count]))
            for i, member in enumerate(self.members)
        ]
        answers = wait_for_all(shares)
        return [answers[i % count][i // count] for i in range(len(prompts))]

    def update(self, trainer: WorkerGroup, version: int) -> int:
        """Stream the trainer's weights into every engine; returns the bytes sent."""
        receiving = [member.update_weights.remote(version) for member in self.members]
        sending = trainer.call("stream")
        results = wait_for_all([*sending, *receiving])
        return sum(results[: len(sending)])
