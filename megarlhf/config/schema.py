"""Every setting of every command, with its default and meaning. The only home of a default.

A command's configuration is one frozen dataclass (`RLConfig`, `SFTConfig`) whose fields are
sections. A key on the command line or in YAML is the dotted path of a field: ``optimizer.lr``.
"""

from dataclasses import dataclass, field
from typing import Literal

REQUIRED = ""  # a path or name the user must give; `checks` names the missing ones


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is laid out over its ranks. Data parallelism is what is left: world / (tp*pp*cp)."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    sequence: bool = False  # sequence parallelism; needs tensor > 1
    virtual_pipeline: int = 1  # model chunks a pipeline stage (interleaved schedule)


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained."""

    path: str = REQUIRED  # Hugging Face directory: config.json, safetensors, tokenizer
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16"  # parameters; bfloat16 keeps fp32 main copies
    )
    recompute: Literal["none", "selective", "full"] = "none"  # activations: keep or compute again
    aux_loss_coef: float = 0.0  # mixtures of experts: weight of the load-balancing loss
    z_loss_coef: float = 0.0  # mixtures of experts: weight of the router's z-loss
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-6
    min_lr_ratio: float = 0.0  # the schedule ends at lr * min_lr_ratio
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0  # global gradient norm; 0 switches clipping off


@dataclass(frozen=True)
class PromptDataConfig:
    """Prompts for RL and where to find their text and label in a row."""

    prompts: str = REQUIRED  # json@FILE or json@DIR, or anything `datasets.load_dataset` takes
    eval_prompts: str | None = None  # held-out prompts, same format
    input_key: str = "prompt"
    label_key: str | None = None  # handed to the reward function
    input_template: str | None = None  # e.g. "Question: {}\nAnswer:"; excludes apply_chat_template
    apply_chat_template: bool = False  # wrap the input as a user turn with the tokenizer's template
    max_samples: int | None = None
    max_prompt_tokens: int = 1024
    overlong_prompts: Literal["error", "drop"] = "error"
    shuffle: bool = True


@dataclass(frozen=True)
class SupervisedDataConfig:
    """Input/output rows for supervised training."""

    train: str = REQUIRED  # json@FILE or json@DIR, or anything `datasets.load_dataset` takes
    input_key: str = "input"
    output_key: str = "output"
    input_template: str | None = None
    apply_chat_template: bool = False
    max_samples: int | None = None
    max_tokens: int = 2048
    overlong_rows: Literal["error", "drop"] = "error"
    shuffle: bool = True


@dataclass(frozen=True)
class RewardConfig:
    """How a response is scored."""

    function: str = REQUIRED  # a Python file that defines reward_func(queries, prompts, labels)


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled: vLLM engines and sampling parameters."""

    engines: int = 1
    tensor_parallel: int = 1  # ranks of each engine
    dtype: Literal["float32", "bfloat16"] | None = None  # None: the trained model's
    prompts_per_step: int = 128
    samples_per_prompt: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 1024
    gpu_memory_utilization: float = 0.85
    kv_cache_gib: int = 1  # CPU backend only: size of the KV cache


@dataclass(frozen=True)
class AlgorithmConfig:
    """The RL algorithm (a row of `megarlhf.algo.registry`) and its coefficients."""

    name: str = "grpo"
    clip_low: float = 0.2  # the probability ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2
    kl_coef: float = 0.001  # weight of the KL to the reference in the loss; 0: no reference model
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    updates_per_rollout: int = 1  # optimizer steps a rollout is cut into
    max_logprob_gap: float | None = None  # stop when mean |log p sampler - log p actor| exceeds it


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run and what happens along the way."""

    steps: int | None = None  # optimizer steps (SFT) or rollouts (RL); None: one pass over the data
    epochs: int = 1  # passes over the data, when steps is not given
    batch_size: int = 128  # SFT only: sequences an optimizer step, over all ranks
    micro_batch_tokens: int = (
        8192  # packed tokens of one forward pass, at most (one sequence at least)
    )
    save_every: int = 0  # steps between checkpoints; 0: only at the end and on a signal
    keep_checkpoints: int = 2
    eval_every: int = (
        0  # RL only: steps between evaluations; 0: before the first and after the last
    )
    seed: int = 1
    resume: bool = True  # go on from the newest checkpoint in output.dir


@dataclass(frozen=True)
class ClusterConfig:
    """Where Ray puts things. With RAY_ADDRESS set, that cluster is used instead of a local one."""

    actor_ranks: int = 1  # processes of the trained model: a multiple of tp*pp*cp
    cpus_per_rank: float = 1.0  # CPU machines; on GPU machines each rank takes one GPU
    threads_per_rank: int = 1  # torch threads of a CPU rank
    start_timeout_s: float = 600.0
    stream_timeout_s: float = 300.0  # the longest a weight update may take


@dataclass(frozen=True)
class OutputConfig:
    """Where the run writes: checkpoints, metrics, report and the exported model."""

    dir: str = REQUIRED
    tensorboard: bool = True
    sampled_rollouts: int = 8  # rollouts a step that are kept for the report


@dataclass(frozen=True)
class RLConfig:
    """``megarlhf rl``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class SFTConfig:
    """``megarlhf sft``, under torchrun."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
