"""The models of a run, of whatever kind it is."""

from megarlhf.config.schema import OfflineConfig, RLConfig
from megarlhf.plan.offline_roles import roles_of_offline
from megarlhf.plan.rl_roles import roles_of_rl
from megarlhf.plan.roles import Role, ShapeOf


def roles_of(config: RLConfig | OfflineConfig, world: int, shape_of: ShapeOf) -> list[Role]:
    """The models of a run.

    Args:
        config: Of RL or of an offline method.
        world: Ranks of an offline run; RL's own configuration says how many each model has.
        shape_of: From a model's path to the directory of its ``config.json``.

    Raises:
        UserError: A method that cannot be planned.
    """
    if isinstance(config, RLConfig):
        return roles_of_rl(config, shape_of)
    return roles_of_offline(config, world, shape_of)
