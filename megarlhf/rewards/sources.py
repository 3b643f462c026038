"""From the section ``reward`` of a configuration to the sources of rewards."""

from collections.abc import Sequence

from megarlhf.config.reward_checks import servers_by_name
from megarlhf.config.schema import RewardConfig
from megarlhf.rewards.function_scorer import function_scorer
from megarlhf.rewards.mix import Rewards
from megarlhf.rewards.scorer import Scorer


def rewards_of(config: RewardConfig) -> Rewards:
    """The sources that a configuration names, in the order of ``reward.weights``; none started."""
    scorers: list[Scorer] = []
    if config.function is not None:
        scorers.append(function_scorer(config.function, config))
    if config.urls:
        scorers += _remote_scorers(config)
    return Rewards(scorers, config.weights or [1.0] * len(scorers))


def _remote_scorers(config: RewardConfig) -> Sequence[Scorer]:
    from megarlhf.rewards.remote_scorer import RemoteScorer  # the HTTP client, only where wanted

    return [RemoteScorer(name, urls, config) for name, urls in servers_by_name(config.urls).items()]
