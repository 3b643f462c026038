"""Low-rank adapters in place of full training."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoraConfig:
    """Adapters on the linears of a frozen model (LoRA); see docs/lora.md."""

    rank: int = 0  # of the adapters; 0 trains the whole model, unless path is given
    alpha: float = 16.0  # the adapters' product is multiplied by alpha / rank
    dropout: float = 0.0  # of the adapters' inputs, while training
    target_modules: tuple[str, ...] = ("all-linear",)  # or names: q_proj, down_proj, ...
    rslora: bool = False  # scale by alpha / sqrt(rank) instead
    path: str | None = None  # adapters to continue from (PEFT), with their rank, alpha, targets
    base: Literal["full", "nf4"] = "full"  # keep the frozen weights as they are (full) or in 4 bits
    double_quant: bool = False  # base=nf4: keep its blocks' scales in 8 bits

    @property
    def is_on(self) -> bool:
        """Whether adapters are trained."""
        return self.rank > 0 or self.path is not None

    @property
    def result(self) -> str:
        """Name in ``output.dir`` of what a run writes at its end: the adapters, or the whole model."""
        return "adapter" if self.is_on else "model"
