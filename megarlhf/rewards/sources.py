"""From the section ``reward`` of a configuration to the sources of rewards."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from megarlhf.config.reward_checks import models_by_name, servers_by_name
from megarlhf.config.schema import RewardConfig
from megarlhf.rewards.function_scorer import function_scorer
from megarlhf.rewards.mix import Rewards
from megarlhf.rewards.model_scorer import ModelScorer
from megarlhf.rewards.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rewards_of(
    config: RewardConfig, tokenizers: "Mapping[str, PreTrainedTokenizerBase] | None" = None
) -> Rewards:
    """The sources that a configuration names, in the order of ``reward.weights``; none started.

    Args:
        config: The section.
        tokenizers: Of those reward models, by name, whose tokenizer is not the actor's.
    """
    scorers: list[Scorer] = []
    if config.function is not None:
        scorers.append(function_scorer(config.function, config))
    for name, path in models_by_name(config.models).items():
        scorers.append(ModelScorer(name, path, (tokenizers or {}).get(name)))
    if config.urls:
        scorers += _remote_scorers(config)
    return Rewards(scorers, config.weights or [1.0] * len(scorers))


def _remote_scorers(config: RewardConfig) -> Sequence[Scorer]:
    from megarlhf.rewards.remote_scorer import RemoteScorer  # the HTTP client, only where wanted

    return [RemoteScorer(name, urls, config) for name, urls in servers_by_name(config.urls).items()]
