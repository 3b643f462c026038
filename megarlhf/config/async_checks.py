"""What sampling ahead of training (`rollout.async_steps`) asks of other settings."""

from megarlhf.config.placement_checks import sharing
from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError


def check_async(config: RLConfig) -> None:
    """Engines and trainer can compute at the same time, and no check is on that cannot hold then.

    Raises:
        UserError: One of these does not hold.
    """
    ahead = config.rollout.async_steps
    if ahead == 0:
        return
    if config.rollout.placement == "colocated":
        raise UserError(
            f"{ahead} steps of sampling ahead of training, but engines and trainer share their "
            "memory and compute by turns (rollout.placement=colocated)",
            where="rollout.async_steps",
            fix="set rollout.placement=separate (under torchrun all share), or rollout.async_steps=0",
        )
    shared = any("reward" in kinds for kinds in sharing(config.cluster.colocate))
    if config.reward.models and shared:
        raise UserError(
            "the reward models score while the others are trained, and cannot share their devices",
            where="cluster.colocate",
            fix="leave the reward out of it, or set rollout.async_steps=0",
        )
    if config.algorithm.max_logprob_gap is not None:
        raise UserError(
            "samples from older weights differ from the actor by more than rounding, so the "
            "difference is no check of the sampler",
            where="algorithm.max_logprob_gap",
            fix="set algorithm.max_logprob_gap=null, or rollout.async_steps=0",
        )
