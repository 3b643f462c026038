"""How much of the machine Ray gives to a rank of the trainer and to an engine."""

from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError

RANK, ENGINE = 0.6, 0.4  # of a GPU, for Ray to count, where the two share one


def gpus_of_rank(config: RLConfig) -> float:
    """Of a rank of the trainer."""
    return 1.0 if config.rollout.placement == "separate" else RANK


def gpus_of_engine(config: RLConfig) -> float:
    """Of an engine.

    Raises:
        UserError: Colocated processes would not be given the same GPUs.
    """
    rollout, ranks = config.rollout, config.cluster.actor_ranks
    if rollout.placement == "separate":
        return float(rollout.tensor_parallel)
    if (ranks, rollout.engines, rollout.tensor_parallel) != (1, 1, 1):
        raise UserError(
            "on GPUs one rank and one engine of one rank can share theirs",
            where="rollout.placement",
            fix="use rollout.placement=separate, or one rank and one engine",
        )
    return ENGINE
