"""Making rollouts: prompts, their samples, their rewards, and which of them are trained on."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from megarlhf.algo.filtering import groups_with_signal
from megarlhf.cluster.device_turns import Separate
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.rewards.tally import Tally, complete_groups
from megarlhf.trainer.engine_settings import rollout_sampling
from megarlhf.trainer.rl_inputs import RLInputs
from megarlhf.trainer.samplers import Sampler

Phase = Callable[[str], AbstractContextManager[None]]  # times its block under a name


@dataclass
class Rollout:
    """What one step of the loop trains on.

    Attributes:
        number: From 0; training on it makes version ``number + 1`` of the weights.
        groups: For each prompt its samples, scored.
        stream: The prompt stream's position once this rollout had all of its prompts.
        metrics: What was measured while it was made.
    """

    number: int
    groups: list[list[Sample]]
    stream: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)


class RolloutMaker:
    """Makes rollouts, one after the other.

    Args:
        config: The run's configuration.
        inputs: Its prompts and rewards.
        sampler: The engines, or an agent that asks them.
        turns: Hand the devices to the engines before they sample.
    """

    def __init__(
        self, config: RLConfig, inputs: RLInputs, sampler: Sampler, turns: Separate
    ) -> None:
        self._config, self._inputs = config, inputs
        self._sampler, self._turns = sampler, turns
        self._sampling = rollout_sampling(config.rollout)

    def make(self, number: int, phase: Phase) -> Rollout:
        """Sample, score and filter, until there are as many prompts as a step wants.

        Args:
            number: The rollout's number.
            phase: Times ``generate`` and ``reward``.

        Raises:
            UserError: Responses cannot be scored, or engines were lost too often.
        """
        inputs, wanted = self._inputs, self._config.rollout.prompts_per_step
        groups: list[list[Sample]] = []
        tally, rounds, dropped = Tally(), 0, 0
        while missing := wanted - len(groups):
            prompts = inputs.stream.next_batch(missing)
            with phase("generate"):
                sampled = self._sample(prompts, number, rounds)
            with phase("reward"):
                tally.add(inputs.reward.score([s for group in sampled for s in group]))
            tally.check(wanted * self._sampling.samples)
            inputs.stream.observe(sampled)
            rounds += 1
            scored = complete_groups(sampled)
            kept = self._worth_training(scored, rounds)
            dropped += len(scored) - len(kept)
            groups += kept
        metrics = tally.metrics()
        if self._config.algorithm.dynamic_filtering:
            metrics["groups_dropped"] = dropped / (dropped + len(groups))
        return Rollout(number, groups, inputs.stream.state_dict(), metrics)

    def _sample(self, prompts: Sequence[Prompt], number: int, rounds: int) -> list[list[Sample]]:
        """Samples, with seeds that depend only on the run's seed, the rollout and the round."""
        again = f"-{rounds}" if rounds else ""
        seeds = random.Random(f"{self._config.train.seed}-{number}{again}")
        self._turns.to_engines()
        return self._sampler.generate(
            prompts, self._sampling, [seeds.getrandbits(31) for _ in prompts]
        )

    def _worth_training(self, groups: list[list[Sample]], rounds: int) -> list[list[Sample]]:
        """All groups or, with dynamic filtering and while refills remain, those with a signal."""
        algorithm = self._config.algorithm
        if not algorithm.dynamic_filtering or rounds > algorithm.max_refills:
            return groups
        keep = groups_with_signal([[sample.reward for sample in group] for group in groups])
        return [group for group, kept in zip(groups, keep, strict=True) if kept]


class InTurn:
    """Rollouts made when they are asked for: sampling and training take turns.

    Args:
        maker: Makes them.
        phase: Times its parts.
    """

    def __init__(self, maker: RolloutMaker, phase: Phase) -> None:
        self._maker, self._phase = maker, phase

    def start(self, number: int) -> None:
        """Nothing to start: `take` makes a rollout when it is asked for one."""

    def take(self, number: int) -> Rollout:
        """The rollout to train on now."""
        return self._maker.make(number, self._phase)

    def has_weights(self, step: int, version: int) -> None:
        """Nothing to tell: no rollout is made before the engines have the newest weights."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """Nothing to hold off: no other thread can interrupt the main one."""
        return nullcontext()
