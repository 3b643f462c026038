"""Every setting of every command, with its default and meaning. The only home of a default.

A command's configuration is one frozen dataclass (`RLConfig`, `SFTConfig`, ...) whose fields are
sections. A key on the command line or in YAML is the dotted path of a field: ``optimizer.lr``.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

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
    chunk_layers: tuple[int, ...] | None = None  # layers of each chunk, first to last; None: even
    overlap: bool = False  # data parallelism: reduce and gather while computing


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
    experts: Literal["auto", "grouped", "sequential"] = "auto"  # a rank's: together, or one by one
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

    prompts: str = (
        REQUIRED  # json@PATH, parquet@PATH, ..., or a name for `datasets`; several with commas
    )
    eval_prompts: str | None = None  # held-out prompts, same format
    split: str | None = None  # of prompts; None: the one called train, or the only one
    eval_split: str | None = None  # of eval_prompts
    probabilities: tuple[float, ...] | None = None  # one a source of prompts; None: one by one
    mixing: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"  # when a mix ends
    input_key: str = "prompt"
    label_key: str | None = None  # handed to the reward function
    input_template: str | None = None  # e.g. "Question: {}\nAnswer:"; excludes apply_chat_template
    apply_chat_template: bool = False  # wrap the input as a user turn with the tokenizer's template
    tokenizer_chat_template: str | None = None  # a template, or a file, in place of the tokenizer's
    max_samples: int | None = None
    max_prompt_tokens: int = 1024
    overlong_prompts: Literal["error", "drop"] = "error"
    shuffle: bool = True


@dataclass(frozen=True)
class RowDataConfig:
    """What the data of all offline methods has in common: sources, templates, limits."""

    sequences_per_row: ClassVar[int] = 1

    train: str = (
        REQUIRED  # json@PATH, parquet@PATH, ..., or a name for `datasets`; several with commas
    )
    eval: str | None = None  # held-out rows, same format; None: eval_split of train, if it is set
    split: str | None = None  # of train; None: the one called train, or the only one
    eval_split: str | None = None  # of eval, or of train without eval
    probabilities: tuple[float, ...] | None = None  # one a source of train; None: one by one
    mixing: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"  # when a mix ends
    input_template: str | None = None  # e.g. "Question: {}\nAnswer:"; excludes apply_chat_template
    apply_chat_template: bool = False  # prompts and answers are turns of the chat template
    tokenizer_chat_template: str | None = None  # a template, or a file, in place of the tokenizer's
    max_samples: int | None = None
    max_tokens: int = 2048
    overlong_rows: Literal["error", "drop", "truncate_left", "truncate_right"] = "error"
    shuffle: bool = True
    workers: int = 1  # processes that tokenize
    cache_dir: str | None = None  # tokenized rows are kept here; None: in output.dir/tokenized


@dataclass(frozen=True)
class SupervisedDataConfig(RowDataConfig):
    """Rows for supervised training: input and output, conversations, or plain text."""

    input_key: str = "input"
    output_key: str | None = "output"  # null: the input is a conversation with the answers in it
    turns: Literal["all", "last", "marked"] = "all"  # of such: which assistant turns are trained on
    pretrain_mode: bool = False  # the input is plain text, all of it trained on; no output_key
    reward_key: str | None = None  # a number that reward_template writes into the input
    reward_template: str = "{input} <rm_score>: {reward} "


@dataclass(frozen=True)
class PreferenceDataConfig(RowDataConfig):
    """Pairs of answers, for reward models and DPO."""

    sequences_per_row: ClassVar[int] = 2

    prompt_key: str | None = "prompt"  # null: chosen and rejected are whole texts or conversations
    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    margin_key: str | None = None  # by how much chosen is better, a number


@dataclass(frozen=True)
class UnpairedDataConfig(RowDataConfig):
    """Single answers, each desirable or not, for KTO."""

    input_key: str = "prompt"
    output_key: str = "completion"
    label_key: str = "label"  # true: desirable


@dataclass(frozen=True)
class StepDataConfig(RowDataConfig):
    """Answers in steps, each with a label, for process reward models."""

    input_key: str | None = "prompt"  # null: the steps are all there is
    steps_key: str = "completions"  # a list of steps, or a text with step_token after each
    label_key: str = "labels"  # true or false, or numbers from 0 to 1, one a step
    step_token: str = "\n"  # one token of the tokenizer; the step is judged at it


@dataclass(frozen=True)
class RewardConfig:
    """How a response is scored: the weighted sum of what one or several sources say."""

    function: str | None = None  # a Python file that defines reward_func(queries, prompts, labels)
    models: tuple[str, ...] = ()  # directories of reward models; NAME=DIR for several
    urls: tuple[str, ...] = ()  # servers of a reward model; NAME=URL for several models
    weights: tuple[float, ...] = ()  # of function, models and urls, in this order; (): 1 each
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # of each of models
    workers: int = 1  # processes that run the function; 0: the driver itself, without a timeout
    batch_size: int = 64  # responses in one call of the function or one request, at most
    timeout_s: float = 60.0  # the longest such a call or request may take
    retries: int = 3  # times that a failing one is repeated
    on_failure: Literal["stop", "drop"] = "stop"  # then: end the run, or go on without the sample


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled: vLLM engines and sampling parameters."""

    engines: int = 1
    tensor_parallel: int = 1  # ranks of each engine
    expert_parallel: bool = False  # mixtures: whole experts on each rank, instead of parts of all
    placement: Literal["separate", "colocated"] = "separate"  # colocated: by turns on the same GPUs
    dtype: Literal["float32", "bfloat16"] | None = None  # None: the trained model's
    prompts_per_step: int = 128
    samples_per_prompt: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 1024
    gpu_memory_utilization: float = 0.85
    kv_cache_gib: int = 1  # CPU backend only: size of the KV cache
    packed_weights: bool = True  # CPU backend only: faster to sample from, slower to update
    timeout_s: float = 3600.0  # the longest that an engine may take for its share of a rollout


@dataclass(frozen=True)
class StreamConfig:
    """How new weights get into the engines, and what happens to an engine that is lost."""

    transport: Literal["auto", "gloo", "shared_memory", "nccl", "cuda_ipc"] = "auto"
    bucket_mib: int = 32  # what is sent at a time; two such buckets exist at most
    verify: Literal["always", "first", "never"] = "first"  # compare the engines' weights by hashes
    verify_every: int = 50  # with first: after this many updates again; 0: never again
    during_generation: Literal["wait", "abort", "keep"] = "wait"  # what becomes of running requests
    restarts: int = 3  # times that a run replaces an engine that died or does not answer


@dataclass(frozen=True)
class AlgorithmConfig:
    """The RL algorithm (a row of `megarlhf.algo.registry`) and its coefficients.

    What is null here is the algorithm's own: docs/algorithms.md lists its values.
    """

    name: str = "grpo"
    file: str | None = None  # a Python file that defines ALGORITHM = Algorithm(...); replaces name

    # the policy's loss
    clip_low: float | None = None  # the probability ratio is clipped to
    clip_high: float | None = None  # [1 - clip_low, 1 + clip_high]
    dual_clip: float | None = None  # bounds the loss at -dual_clip * A where A < 0; null: no bound
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] | None = None
    entropy_coef: float = 0.0  # weight of the entropy bonus
    correction: Literal["none", "tis", "icepop", "sequence_mask"] = "none"  # trainer/sampler ratio
    correction_low: float = 0.5
    correction_high: float = 5.0

    # KL to the reference
    kl_coef: float | None = None  # 0: no reference model
    kl_in: Literal["loss", "reward"] | None = None
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    kl_target: float | None = None  # adapt kl_coef to hold this KL (mean a token); null: fixed
    kl_horizon: int = 10000  # samples in which the adaptive kl_coef changes by a fifth, at most

    # rewards of whole responses, in this order
    normalize_rewards: bool = False  # by their running mean and standard deviation
    overlong_buffer: float | None = None  # last share of max_new_tokens that is penalized; 0: none
    overlong_penalty: float = 1.0  # at the end of the buffer; grows from 0 at its beginning
    length_penalty: float = 0.0  # for a response of max_new_tokens; in proportion for a shorter one
    truncation_coef: float | None = None  # times the reward of a truncated one; < 0: replaces it
    reward_clip: float | None = None  # rewards are clipped to [-reward_clip, reward_clip]

    # advantages
    gamma: float = 1.0  # discount a token
    gae_lambda: float = 1.0  # with a critic
    value_clip: float | None = 0.5  # most that a value moves in an update; null: no bound
    advantage_normalization: Literal["none", "mean", "std"] | None = None  # over the batch's tokens

    # what is trained on, and how often
    dynamic_filtering: bool | None = None  # replace prompts whose samples all got one reward
    max_refills: int = 10  # times a step samples replacements, before it takes what there is
    epochs: int = 1  # passes over a rollout
    updates_per_rollout: int = 1  # optimizer steps that a pass is cut into
    max_logprob_gap: float | None = None  # stop when mean |log p sampler - log p actor| exceeds it


@dataclass(frozen=True)
class CriticConfig:
    """The critic, for algorithms that have one: a scalar head on a language or a reward model.

    Its dtype is the actor's.
    """

    path: str | None = None  # Hugging Face directory, e.g. of the reward model; null: model.path
    recompute: Literal["none", "selective", "full"] = "none"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=9e-6))
    warmup_rollouts: int = 0  # first rollouts, from which only the critic learns
    export: bool = False  # write it beside the model at the end


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run and what happens along the way."""

    steps: int | None = None  # optimizer steps (offline) or rollouts (RL); None: see epochs
    epochs: int = 1  # passes over the data, when steps is not given
    batch_size: int = 128  # offline only: rows (or pairs) an optimizer step, over all ranks
    micro_batch_tokens: int = (
        8192  # packed tokens of one forward pass, at most (one sequence at least)
    )
    save_every: int = 0  # steps between checkpoints; 0: only at the end and on a signal
    keep_checkpoints: int = 2
    eval_every: int = 0  # steps between evaluations; always before the first and after the last
    seed: int = 1
    resume: bool = True  # go on from the newest checkpoint in output.dir


@dataclass(frozen=True)
class ClusterConfig:
    """Where Ray puts things. With RAY_ADDRESS set, that cluster is used instead of a local one."""

    actor_ranks: int = 1  # processes of the trained model: a multiple of tp*pp*cp
    critic_ranks: int | None = None  # processes of the critic; null: as many as the actor's
    reward_ranks: int = 1  # processes of each of reward.models
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
    stream: StreamConfig = field(default_factory=StreamConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class RewardLossConfig:
    """The loss of a reward model; data.margin_key gives it margins."""

    center_coef: float = 0.0  # weight of (chosen + rejected)^2, which keeps scores near 0


@dataclass(frozen=True)
class PreferenceLossConfig:
    """The loss of DPO and its relatives."""

    kind: Literal["sigmoid", "ipo"] = "sigmoid"  # DPO, or IPO on means a token
    beta: float = 0.1  # strength of the tie to the reference
    label_smoothing: float = 0.0  # sigmoid only: share of pairs taken to be the wrong way round
    nll_coef: float = 0.0  # weight of -log p of the chosen answer, a mean over its tokens
    reference: Literal["online", "cached", "none"] = "online"  # each step, once, or reference-free


@dataclass(frozen=True)
class UnpairedLossConfig:
    """The loss of KTO."""

    beta: float = 0.1  # strength of the tie to the reference
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kl: Literal["mismatched", "opposite", "none"] = "mismatched"  # what the KL is estimated from


@dataclass(frozen=True)
class TeacherConfig:
    """The model that is learned from, in a layout of its own on the same ranks."""

    path: str = REQUIRED  # Hugging Face directory; the same tokenizer as model.path
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class DistillationLossConfig:
    """The loss of knowledge distillation."""

    divergence: Literal["forward", "reverse", "js"] = "forward"  # KL(teacher||student), ...
    js_weight: float = 0.5  # js: the teacher's share in the mixture
    temperature: float = 1.0  # of both distributions
    top_k: int | None = None  # keep the teacher's best tokens and one for the rest; null: all
    kd_coef: float = 0.5  # weight of the divergence; 1 - kd_coef is that of the data's -log p


@dataclass(frozen=True)
class OfflineConfig:
    """What all commands have in common that torchrun starts."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: RowDataConfig = field(default_factory=RowDataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
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
