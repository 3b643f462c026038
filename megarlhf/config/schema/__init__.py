"""Every setting of every command, with its default and meaning. The only home of a default.

A command's configuration is one frozen dataclass (`RLConfig`, `SFTConfig`, ...) whose fields are
sections. A key on the command line or in YAML is the dotted path of a field: ``optimizer.lr``.
"""

from megarlhf.config.schema.agent import (
    AgentConfig,
)
from megarlhf.config.schema.algorithm import (
    AlgorithmConfig,
    CriticConfig,
    ReferenceConfig,
)
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
    PromptDataConfig,
    RowDataConfig,
    StepDataConfig,
    SupervisedDataConfig,
    UnpairedDataConfig,
)
from megarlhf.config.schema.learning import (
    EMAConfig,
    EvaluationConfig,
    PretrainingDataConfig,
    PtxConfig,
)
from megarlhf.config.schema.lora import LoraConfig
from megarlhf.config.schema.offline import (
    DistillationLossConfig,
    DPOConfig,
    KDConfig,
    KTOConfig,
    OfflineConfig,
    PreferenceLossConfig,
    PRMConfig,
    RewardLossConfig,
    RMConfig,
    SFTConfig,
    TeacherConfig,
    UnpairedLossConfig,
)
from megarlhf.config.schema.rl import (
    ClusterConfig,
    RLConfig,
)
from megarlhf.config.schema.sampling import (
    RewardConfig,
    RolloutConfig,
    StreamConfig,
)

__all__ = [
    "REQUIRED",
    "AgentConfig",
    "AlgorithmConfig",
    "ClusterConfig",
    "CriticConfig",
    "DPOConfig",
    "DistillationLossConfig",
    "EMAConfig",
    "EvaluationConfig",
    "KDConfig",
    "KTOConfig",
    "LoraConfig",
    "MachinesConfig",
    "ModelConfig",
    "OfflineConfig",
    "OptimizerConfig",
    "OutputConfig",
    "PRMConfig",
    "ParallelConfig",
    "PreferenceDataConfig",
    "PreferenceLossConfig",
    "PretrainingDataConfig",
    "PromptDataConfig",
    "PtxConfig",
    "RLConfig",
    "RMConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RewardLossConfig",
    "RolloutConfig",
    "RowDataConfig",
    "SFTConfig",
    "StepDataConfig",
    "StreamConfig",
    "SupervisedDataConfig",
    "TeacherConfig",
    "TrainConfig",
    "UnpairedDataConfig",
    "UnpairedLossConfig",
]
