"""``megarlhf rl`` and ``megarlhf generate``."""

from dataclasses import dataclass, field

from megarlhf.config.schema.agent import AgentConfig
from megarlhf.config.schema.algorithm import AlgorithmConfig, CriticConfig, ReferenceConfig
from megarlhf.config.schema.common import (
    MachinesConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    TrainConfig,
)
from megarlhf.config.schema.data import PromptDataConfig
from megarlhf.config.schema.learning import EMAConfig, EvaluationConfig, PtxConfig
from megarlhf.config.schema.lora import LoraConfig
from megarlhf.config.schema.sampling import RewardConfig, RolloutConfig, StreamConfig


@dataclass(frozen=True)
class ClusterConfig(MachinesConfig):
    """Where Ray puts things. With RAY_ADDRESS set, that cluster is used instead of a local one.

    Under torchrun every model has all of its ranks, and shares them: docs/placement.md.
    """

    actor_ranks: int = 1  # processes of the trained model: a multiple of tp*pp*cp
    critic_ranks: int | None = None  # processes of the critic; null: as many as the actor's
    reference_ranks: int | None = None  # processes of the reference; null: it is in the actor's
    reward_ranks: int = 1  # processes of each of reward.models
    actor_nodes: int | None = None  # nodes that they are spread over evenly; null: as they fit
    critic_nodes: int | None = None  # the same for the critic
    reference_nodes: int | None = None  # the same for the reference
    reward_nodes: int | None = None  # the same for each reward model
    colocate: tuple[str, ...] = ()  # models that share devices: all, or such as critic+reward
    cpus_per_rank: float = 1.0  # on CPU machines; on GPU machines each rank takes one GPU
    threads_per_rank: int = 1  # torch threads of a rank on a CPU
    start_timeout_s: float = 600.0  # longest that all processes may take to start
    stream_timeout_s: float = 300.0  # longest that a weight update may take


@dataclass(frozen=True)
class RLConfig:
    """``megarlhf rl``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
