"""The reward models of an RL run on Megatron ranks of their own."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.placement import reward_role
from megarlhf.cluster.worker_group import WorkerGroup
from megarlhf.config.schema import RLConfig
from megarlhf.engine.reward_worker import RewardWorker
from megarlhf.rewards.model_scorer import ModelScorer
from megarlhf.rewards.scorer import Scorer


def start_reward_models(config: RLConfig, scorers: Sequence[Scorer], groups: ModelGroups) -> None:
    """Start the ranks of every reward model, and let its scorer use them; they are up on return."""
    for scorer in scorers:
        if isinstance(scorer, ModelScorer):
            one = replace(config, reward=replace(config.reward, models=(scorer.where,)))
            group = groups.group(RewardWorker, reward_role(scorer.name), one)
            group.start()
            scorer.use(partial(_scores, group))


def _scores(group: WorkerGroup, token_ids: Sequence[Sequence[int]]) -> dict[int, float]:
    return group.merged("scores", token_ids)
