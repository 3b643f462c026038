"""What is taken for rounding, by dtype. docs/parity.md has the measurements behind the numbers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from megarlhf.config.layout_checks import EXPERT_COUNT_KEYS


@dataclass(frozen=True)
class Thresholds:
    """The largest error that does not make a layout OFF; relative unless said otherwise.

    Attributes:
        logits: Against Hugging Face.
        reference: One rank's loss, gradients and gradient norm against Hugging Face.
        outputs: Any module's output against one rank.
        loss: Of the first step, against one rank.
        gradients: Any full gradient against one rank, and its copies against each other.
        grad_norm: Against one rank.
        steps: Absolute difference of the loss to one rank's at any step.
    """

    logits: float
    reference: float
    outputs: float
    loss: float
    gradients: float
    grad_norm: float
    steps: float

    @classmethod
    def of(cls, dtype: str, model: Mapping[str, Any], tolerance: float = 1.0) -> "Thresholds":
        """Those of a dtype for a model.

        Args:
            dtype: ``float32``, ``float64`` or ``bfloat16``.
            model: The parsed ``config.json``: a mixture of experts is given more.
            tolerance: Times this.
        """
        chosen = _BY_DTYPE[dtype]
        if dtype == "float32" and any(model.get(key) for key in EXPERT_COUNT_KEYS):
            chosen = replace(chosen, gradients=5e-6)
        return cls(**{name: value * tolerance for name, value in asdict(chosen).items()})


_BY_DTYPE = {
    "float32": Thresholds(
        logits=1e-5,
        reference=1e-5,
        outputs=1e-5,
        loss=1e-6,
        gradients=2e-6,
        grad_norm=1e-6,
        steps=2e-5,
    ),
    # Hugging Face's RMSNorm and RoPE compute in float32 whatever the model's dtype is.
    "float64": Thresholds(
        logits=2e-6,
        reference=1e-5,
        outputs=1e-12,
        loss=1e-12,
        gradients=1e-12,
        grad_norm=1e-12,
        steps=0.0,  # no optimizer steps
    ),
    "bfloat16": Thresholds(
        logits=5e-2,
        reference=5e-2,
        outputs=1e-1,
        loss=1e-3,
        gradients=1e-1,
        grad_norm=5e-3,
        steps=2e-2,
    ),
}
