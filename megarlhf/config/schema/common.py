"""Sections that several commands have: the model, its layout, its optimizer, the run, the output."""

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
    # states: main parameters and moments lie on the host, where Adam is computed; see docs/tuning.md
    offload: Literal["none", "states"] = "none"


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
    best_metric: str | None = None  # e.g. eval_accuracy: the checkpoint with the best one is kept
    best_is: Literal["highest", "lowest"] = "highest"  # which value of it
    max_skipped_steps: int = 3  # optimizer steps in a row whose loss or gradient is not finite
    seed: int = 1
    resume: bool = True  # go on from the newest checkpoint in output.dir


@dataclass(frozen=True)
class MachinesConfig:
    """The machines that a run is planned for (`megarlhf plan`); a run takes those that it finds."""

    gpu: str | None = None  # as megarlhf/plan/hardware.json calls it: a100-80g, h100, ...
    nodes: int = 1
    gpus_per_node: int = 8


@dataclass(frozen=True)
class OutputConfig:
    """Where the run writes: checkpoints, metrics, report and the exported model."""

    dir: str = REQUIRED
    tensorboard: bool = True
    wandb: str | None = None  # project on Weights & Biases to log to; needs the package wandb
    sampled_rollouts: int = 8  # rollouts a step that are kept for the report
    export_best: bool = False  # write the model of train.best_metric into output.dir/best, too
