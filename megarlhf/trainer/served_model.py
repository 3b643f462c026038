"""``megarlhf serve-rm --model``: a reward model on Megatron ranks, behind HTTP."""

import asyncio
from typing import Any

from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.processes import Opener, ProcessGone
from megarlhf.config import checks
from megarlhf.config.model_files import read_model_config
from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import RLConfig
from megarlhf.errors import ProcessLost
from megarlhf.rewards.model_scorer import ModelScorer
from megarlhf.rewards.server import serve
from megarlhf.trainer.reward_models import start_reward_models
from megarlhf.trainer.rl_inputs import check_reward_model


def serve_model(
    config: RLConfig, opener: Opener, *, host: str, port: int, max_batch: int
) -> dict[str, Any]:
    """Serve the only one of ``reward.models`` until a signal ends it.

    Args:
        config: Of it ``reward.parallel``, ``model`` (dtype, kernels) and ``cluster`` count.
        opener: Who keeps the ranks.
        host: Address to listen at.
        port: Port to listen at; 0 for any free one, which is printed.
        max_batch: Responses that a request may have.

    Raises:
        UserError: It is no reward model, the layout does not fit it, or the port is taken.
        ProcessLost: A rank ended.
    """
    checks.check_served_model(config)
    ((name, path),) = models_by_name(config.reward.models).items()
    tokenizer = check_reward_model(config, path)
    longest = read_model_config(path, "reward.models").get("max_position_embeddings")
    scorer = ModelScorer(name, path, tokenizer, longest)
    with opener(placement_of(config, ["reward"])) as processes:
        start_reward_models(config, [scorer], ModelGroups(config, processes))
        try:
            asyncio.run(serve(scorer, host, port, max_batch))
        except ProcessGone as error:
            raise ProcessLost(
                str(error), fix="see its last output above; start it again"
            ) from error
    return {}
