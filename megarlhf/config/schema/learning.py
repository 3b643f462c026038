"""Sections of RL beside the algorithm: what else is learned, averaged and measured."""

from dataclasses import dataclass, field
from typing import Literal

from megarlhf.config.schema.data import SupervisedDataConfig


@dataclass(frozen=True)
class EMAConfig:
    """An exponential moving average of the actor's weights, in fp32 on its ranks."""

    decay: float | None = None  # what an optimizer step keeps of the average, e.g. 0.99; null: none
    export: Literal["beside", "instead"] = "beside"  # output.dir/ema, or as output.dir/model


@dataclass(frozen=True)
class PretrainingDataConfig(SupervisedDataConfig):
    """The rows of ``ptx``, as those of ``megarlhf sft``."""

    train: str | None = None  # json@PATH, ...; separate several by commas
    max_tokens: int = 1024


@dataclass(frozen=True)
class PtxConfig:
    """Supervised rows whose loss is added to the actor's (ptx)."""

    coef: float = 0.0  # weight of the rows' loss, the mean of -log p over their tokens; 0: none
    batch_size: int = 32  # rows per optimizer step, over all ranks
    data: PretrainingDataConfig = field(default_factory=PretrainingDataConfig)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of held-out prompts beside the mean reward of greedy answers."""

    sets: tuple[str, ...] = ()  # more held-out prompts: NAME=json@PATH, ..., read like eval_prompts
    samples: int = 0  # sampled answers per prompt, for pass@k; 0: none
    pass_at: tuple[int, ...] = (1,)  # values of k, each at most samples
    pass_score: float = 1.0  # an answer is right if its score (or reward) is at least this
    temperature: float = 1.0  # of the sampled answers
    top_p: float = 1.0  # of the sampled answers
