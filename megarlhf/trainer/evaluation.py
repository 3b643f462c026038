"""How good the actor's answers to held-out prompts are."""

import math
import random
from collections.abc import Callable, Mapping, Sequence

from megarlhf.algo.pass_at_k import pass_at_k
from megarlhf.config.learning_checks import ACCURACY, of_set
from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.rewards.mix import Rewards
from megarlhf.rollout.settings import Sampling

# From prompts, how to sample and a seed for each prompt to its samples.
Generate = Callable[[Sequence[Prompt], Sampling, Sequence[int]], list[list[Sample]]]
# Keeps greedy answers: the step, the set's name, the answers.
Keep = Callable[[int, str, list[list[Sample]]], None]


class Evaluation:
    """Measures all sets of held-out prompts with the engines' weights.

    Greedy answers give ``eval_accuracy``, their mean reward; ``evaluation.samples`` sampled ones give
    ``eval_pass@k``. Every request has a seed of its own, which depends on the run's seed, the set and
    the prompt only: two evaluations of the same weights are the same, and nothing else is disturbed.

    Args:
        config: The run's configuration.
        sets: Held-out prompts by the set's name; ``""`` for those of ``data.eval_prompts``.
        generate: Asks the engines.
        rewards: Scores the answers.
        keep: Gets the greedy answers.
    """

    def __init__(
        self,
        config: RLConfig,
        sets: Mapping[str, Sequence[Prompt]],
        generate: Generate,
        rewards: Rewards,
        keep: Keep,
    ) -> None:
        self._settings, self._seed = config.evaluation, config.train.seed
        self._sets, self._generate = sets, generate
        self._rewards, self._keep = rewards, keep
        longest = config.rollout.max_new_tokens
        self._greedy = Sampling(1, 0.0, 1.0, -1, longest)
        sampled = self._settings
        self._sampling = Sampling(sampled.samples, sampled.temperature, sampled.top_p, -1, longest)

    def __bool__(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self._sets)

    def run(self, step: int) -> dict[str, float]:
        """The metrics that `evaluation_metrics` names; ``step`` is for the records."""
        metrics = {}
        for name, prompts in self._sets.items():
            answers = self._answers(name, prompts, self._greedy)
            self._keep(step, name, answers)
            rewards = [g[0].reward for g in answers if g[0].reward is not None]
            metrics[of_set(ACCURACY, name)] = math.fsum(rewards) / len(rewards)
            if self._sampling.samples:
                counts = self._right(self._answers(name, prompts, self._sampling))
                for k in self._settings.pass_at:
                    metrics[of_set(f"eval_pass@{k}", name)] = mean_pass_at(k, counts)
        return metrics

    def _answers(
        self, name: str, prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[list[Sample]]:
        """Scored answers to every prompt.

        Raises:
            UserError: None could be scored.
        """
        seeds = [
            random.Random(f"{self._seed}-evaluation-{name}-{prompt.index}").getrandbits(31)
            for prompt in prompts
        ]
        groups = self._generate(prompts, sampling, seeds)
        samples = [sample for group in groups for sample in group]
        self._rewards.score(samples).check(len(samples))
        return groups

    def _right(self, groups: Sequence[Sequence[Sample]]) -> list[tuple[int, int]]:
        """For each prompt the number of its scored answers and of the right ones among them."""
        scores = [[s.score for s in group if s.score is not None] for group in groups]
        least = self._settings.pass_score
        return [(len(own), sum(score >= least for score in own)) for own in scores]


def mean_pass_at(k: int, counts: Sequence[tuple[int, int]]) -> float:
    """The mean of pass@k over the prompts with at least k scored answers; NaN if there is none.

    Args:
        k: How many answers are tried.
        counts: For each prompt its scored answers and the right ones among them.
    """
    found = [pass_at_k(samples, right, k) for samples, right in counts if samples >= k]
    return math.fsum(found) / len(found) if found else math.nan
