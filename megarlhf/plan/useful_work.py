"""What the mathematics of a step asks for, however it is computed."""

import functools
import math
from pathlib import Path

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology
from megarlhf.plan.equal_layers import of_all_layers
from megarlhf.plan.roles import TRAIN, Role


def active_parameters(spec: ModelSpec) -> int:
    """Those that a token meets: of a mixture's experts, as many as it is routed to."""
    return _active(spec.path, spec.scalar_head)


@functools.lru_cache(maxsize=32)
def _active(path: Path, scalar_head: str | None) -> int:
    return of_all_layers(ModelSpec.read(path, scalar_head=scalar_head), _count_active)


def _count_active(spec: ModelSpec) -> int:
    total = 0
    for parameter in parameters_of(spec, Topology(1), 0):
        size = math.prod(parameter.shape)
        if ".experts." in parameter.name:
            size = size * int(spec.settings["moe_router_topk"]) // spec.num_experts
        if not parameter.name.startswith("embedding."):
            total += size
    return total


def useful_flops(roles: list[Role], tokens: int) -> float:
    """Of a step's training, over all ranks: 6 a parameter and token, and attention's.

    That is 6 a layer, head width and pair of tokens of a sequence of ``tokens``. Of a frozen model with
    adapters 4 a parameter: its weights have no gradients. Recomputing is not counted (PaLM, Chowdhery
    et al. 2022, arXiv:2204.02311, appendix B; causal masks counted as half).
    """
    total = 0.0
    for role in roles:
        if TRAIN not in role.work:
            continue
        work, settings = role.work[TRAIN], role.spec.settings
        width = int(settings["num_attention_heads"]) * int(settings["kv_channels"])
        attention = 6 * role.spec.num_layers * width * tokens
        each = 4 if role.lora.is_on else 6
        per_token = each * active_parameters(role.spec) + attention
        total += per_token * work.sequences * tokens * work.times
    return total
