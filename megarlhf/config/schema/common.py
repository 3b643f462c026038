"""Sections that several commands have: the model, its layout, its optimizer, the run, the output."""

from dataclasses import dataclass, field
from typing import Literal

REQUIRED = ""  # a path or name the user must give; `checks` names the missing ones


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is laid out over its ranks. Data parallelism is what is left: world / (tp*pp*cp)."""

    tensor: int = 1  # ranks that share each layer (tensor parallelism)
    pipeline: int = 1  # stages that the layers are divided into (pipeline parallelism)
    context: int = 1  # ranks that share each sequence (ring attention)
    expert: int = 1  # mixtures: ranks that share a layer's experts
    sequence: bool = False  # sequence parallelism; needs tensor > 1
    virtual_pipeline: int = 1  # model chunks per pipeline stage (interleaved schedule)
    chunk_layers: tuple[int, ...] | None = None  # layers of each chunk, first to last; null: even
    overlap: bool = False  # data parallelism: communicate while computing


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained."""

    path: str = REQUIRED  # Hugging Face directory: config.json, safetensors, tokenizer
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # bfloat16 keeps fp32 main copies
    recompute: Literal["none", "selective", "full"] = "none"  # activations: keep or compute again
    aux_loss_coef: float = 0.0  # mixtures of experts: weight of the load-balancing loss
    z_loss_coef: float = 0.0  # mixtures of experts: weight of the router's z-loss
    experts: Literal["auto", "grouped", "sequential"] = "auto"  # a rank's: together, or one by one
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-6  # peak learning rate
    min_lr_ratio: float = 0.0  # the schedule ends at lr * min_lr_ratio
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of the rate, after warm-up
    warmup_steps: int = 0  # steps in which the learning rate rises from 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0  # largest global gradient norm; 0: no clipping
    offload: Literal["none", "states"] = "none"  # states: Adam runs on the host


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run and what happens along the way."""

    steps: int | None = None  # optimizer steps (offline) or rollouts (RL); null: see epochs
    epochs: int = 1  # passes over the data, where steps is null
    batch_size: int = 128  # offline only: rows (or pairs) per optimizer step, over all ranks
    micro_batch_tokens: int = 8192  # most packed tokens in a forward pass (at least one sequence)
    save_every: int = 0  # steps between checkpoints; 0: only at the end and on a signal
    keep_checkpoints: int = 2  # how many of the newest to keep
    eval_every: int = 0  # steps between evaluations; always before the first and after the last
    best_metric: str | None = None  # e.g. eval_accuracy: keep the best checkpoint by it, too
    best_is: Literal["highest", "lowest"] = "highest"  # which value of best_metric is best
    max_skipped_steps: int = 3  # how many steps in a row may be skipped for not being finite
    seed: int = 1
    resume: bool = True  # continue from the newest checkpoint in output.dir


@dataclass(frozen=True)
class MachinesConfig:
    """The machines that a run is planned for (`megarlhf plan`); a run takes those that it finds."""

    gpu: str | None = None  # for megarlhf plan: a100-80g, h100, ... (megarlhf/plan/hardware.json)
    nodes: int = 1  # for megarlhf plan
    gpus_per_node: int = 8  # for megarlhf plan


@dataclass(frozen=True)
class OutputConfig:
    """Where the run writes: checkpoints, metrics, report and the exported model."""

    dir: str = REQUIRED  # where checkpoints, logs and the result go
    tensorboard: bool = True  # write TensorBoard events
    wandb: str | None = None  # Weights & Biases project to log to; needs the package wandb
    sampled_rollouts: int = 8  # rollouts per step that are kept for the report
    export_best: bool = False  # also write the best model (train.best_metric) to output.dir/best
