"""Low-rank adapters in place of full training."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoraConfig:
    """Adapters on the linears of a frozen model (LoRA); see docs/lora.md."""

    rank: int = 0  # 0: train the whole model, unless path is given
    alpha: float = 16.0  # the adapters' product is multiplied by alpha / rank
    dropout: float = 0.0  # of the adapters' inputs, in training
    target_modules: tuple[str, ...] = ("all-linear",)  # Hugging Face names: q_proj, down_proj, ...
    rslora: bool = False  # alpha / sqrt(rank) instead
    path: str | None = None  # go on from these adapters (PEFT's format): their rank, alpha, targets
    base: Literal["full", "nf4"] = "full"  # the frozen linears' weights: as loaded, or in 4 bits
    double_quant: bool = False  # base=nf4: the scales of its blocks in 8 bits

    @property
    def is_on(self) -> bool:
        """Whether adapters are trained."""
        return self.rank > 0 or self.path is not None

    @property
    def result(self) -> str:
        """Name in ``output.dir`` of what a run writes at its end: the adapters, or the whole model."""
        return "adapter" if self.is_on else "model"
