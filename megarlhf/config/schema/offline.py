"""The commands that torchrun starts: their losses and the wholes."""

from dataclasses import dataclass, field
from typing import Literal

from megarlhf.config.schema.common import (
    REQUIRED,
    MachinesConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    ParallelConfig,
    TrainConfig,
)
from megarlhf.config.schema.data import (
    PreferenceDataConfig,
    RowDataConfig,
    StepDataConfig,
    SupervisedDataConfig,
    UnpairedDataConfig,
)
from megarlhf.config.schema.lora import LoraConfig


@dataclass(frozen=True)
class RewardLossConfig:
    """The loss of a reward model; data.margin_key gives it margins."""

    center_coef: float = 0.0  # weight of (chosen + rejected)^2, which keeps scores near 0


@dataclass(frozen=True)
class PreferenceLossConfig:
    """The loss of DPO and its relatives."""

    kind: Literal["sigmoid", "ipo"] = "sigmoid"  # DPO, or IPO on means per token
    beta: float = 0.1  # how strongly the policy is tied to the reference
    label_smoothing: float = 0.0  # sigmoid only: share of pairs assumed to be the wrong way round
    nll_coef: float = 0.0  # weight of -log p of the chosen answer, a mean over its tokens
    reference: Literal["online", "cached", "none"] = "online"  # in each step, once, or not at all


@dataclass(frozen=True)
class UnpairedLossConfig:
    """The loss of KTO."""

    beta: float = 0.1  # how strongly the policy is tied to the reference
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kl: Literal["mismatched", "opposite", "none"] = "mismatched"  # what it is estimated from


@dataclass(frozen=True)
class TeacherConfig:
    """The model that is learned from, in a layout of its own on the same ranks."""

    path: str = REQUIRED  # Hugging Face directory; its tokenizer must be that of model.path
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class DistillationLossConfig:
    """The loss of knowledge distillation."""

    divergence: Literal["forward", "reverse", "js"] = "forward"  # KL(teacher||student), ...
    js_weight: float = 0.5  # js: the teacher's share of the mixture
    temperature: float = 1.0  # of both distributions
    top_k: int | None = None  # keep only the teacher's best tokens, and one for the rest; null: all
    kd_coef: float = 0.5  # weight of the divergence; 1 - kd_coef weights the data's -log p


@dataclass(frozen=True)
class OfflineConfig:
    """What all commands have in common that torchrun starts."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: RowDataConfig = field(default_factory=RowDataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: MachinesConfig = field(default_factory=MachinesConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class SFTConfig(OfflineConfig):
    """``megarlhf sft``."""

    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)


@dataclass(frozen=True)
class RMConfig(OfflineConfig):
    """``megarlhf rm``."""

    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    loss: RewardLossConfig = field(default_factory=RewardLossConfig)


@dataclass(frozen=True)
class PRMConfig(OfflineConfig):
    """``megarlhf prm``."""

    data: StepDataConfig = field(default_factory=StepDataConfig)


@dataclass(frozen=True)
class DPOConfig(OfflineConfig):
    """``megarlhf dpo``."""

    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    loss: PreferenceLossConfig = field(default_factory=PreferenceLossConfig)


@dataclass(frozen=True)
class KTOConfig(OfflineConfig):
    """``megarlhf kto``."""

    data: UnpairedDataConfig = field(default_factory=UnpairedDataConfig)
    loss: UnpairedLossConfig = field(default_factory=UnpairedLossConfig)


@dataclass(frozen=True)
class KDConfig(OfflineConfig):
    """``megarlhf kd``."""

    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: DistillationLossConfig = field(default_factory=DistillationLossConfig)
