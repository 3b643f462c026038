"""Which prompts of a rollout are worth training on."""

from collections.abc import Sequence


def groups_with_signal(rewards: Sequence[Sequence[float]]) -> list[bool]:
    """For each prompt, whether the rewards of its samples differ: equal ones give no gradient.

    The condition of DAPO's dynamic sampling, Yu et al. 2025, arXiv:2503.14476, eq. 11, for rewards
    of any values.
    """
    return [min(group) < max(group) for group in rewards]
