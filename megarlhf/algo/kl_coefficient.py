"""The coefficient of the KL penalty: fixed, or led to a target."""

from typing import Any


class KLCoefficient:
    """beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) samples / horizon); fixed without a target.

    The proportional controller of Ziegler et al. 2019, arXiv:1909.08593, section 2.2, whose 0.1 is
    1 / horizon. As in OpenRLHF the KL is the mean a token.

    Args:
        value: beta to begin with.
        target: The KL to hold; None keeps beta.
        horizon: Samples over which a KL off by 20% or more changes beta by 20%.
    """

    def __init__(self, value: float, target: float | None, horizon: int) -> None:
        self.value, self._target, self._horizon = value, target, horizon

    def update(self, kl: float, samples: int) -> None:
        """After training on ``samples`` responses at a mean KL of ``kl``."""
        if self._target is not None:
            error = min(max(kl / self._target - 1.0, -0.2), 0.2)
            self.value *= 1.0 + error * samples / self._horizon

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.value = state["value"]
