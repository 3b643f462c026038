"""The auxiliary losses of a mixture's routers, in plain torch, for Hugging Face's model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec


@dataclass(frozen=True)
class RoutingLosses:
    """Their weights; 0 where there is none.

    Attributes:
        balance: Of the load-balancing loss (Switch Transformer, arXiv:2101.03961, eq. 4).
        z: Of the z-loss (ST-MoE, arXiv:2202.08906, eq. 5).
    """

    balance: float = 0.0
    z: float = 0.0

    def check(self, spec: ModelSpec) -> None:
        """Refuse what means nothing.

        Raises:
            UserError: A weight is negative, or the model has no routers.
        """
        for name, weight in (("--aux-loss", self.balance), ("--z-loss", self.z)):
            if weight < 0:
                raise UserError(f"must be at least 0, got {weight:g}", where=name)
            if weight > 0 and not spec.num_experts:
                raise UserError("the model has no experts", where=name, fix="leave it out")

    def of(self, spec: ModelSpec, routers: Sequence[torch.Tensor]) -> torch.Tensor | float:
        """The losses of one micro-batch times its tokens.

        Args:
            spec: The model.
            routers: Each router's logits [T, E].
        """
        return sum(self._of_router(spec, logits) for logits in routers)

    def _of_router(self, spec: ModelSpec, logits: torch.Tensor) -> torch.Tensor:
        tokens, experts = logits.shape
        topk = int(spec.settings["moe_router_topk"])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if spec.settings.get("moe_router_score_function") == "sigmoid":
            scores = wide.sigmoid() / wide.sigmoid().sum(-1, keepdim=True)
        else:
            scores = wide.softmax(-1)
        # Without groups and biases: the balance that is wanted is that of the scores.
        chosen = scores.topk(topk).indices.flatten().bincount(minlength=experts)
        balance = experts * (scores.mean(0) * chosen / (tokens * topk)).sum()
        return tokens * self.balance * balance + self.z * wide.logsumexp(-1).square().sum()


NONE = RoutingLosses()
