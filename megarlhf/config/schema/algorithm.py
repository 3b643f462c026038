"""Sections about what an RL run learns, and how."""

from dataclasses import dataclass, field
from typing import Literal

from megarlhf.config.schema.common import OptimizerConfig, ParallelConfig


@dataclass(frozen=True)
class AlgorithmConfig:
    """The RL algorithm (a row of `megarlhf.algo.registry`) and its coefficients.

    What is null here is the algorithm's own: docs/algorithms.md lists its values.
    """

    name: str = "grpo"  # a row of docs/algorithms.md
    file: str | None = None  # a Python file that defines ALGORITHM = Algorithm(...); replaces name

    # the policy's loss
    clip_low: float | None = None  # the ratio of probabilities is clipped at 1 - clip_low
    clip_high: float | None = None  # and at 1 + clip_high
    dual_clip: float | None = None  # bounds the loss at -dual_clip * A where A < 0; null: no bound
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] | None = None  # of tokens
    entropy_coef: float = 0.0  # weight of the entropy bonus
    correction: Literal["none", "tis", "icepop", "sequence_mask"] = "none"  # of sampler to trainer
    correction_low: float = 0.5  # smallest and
    correction_high: float = 5.0  # largest weight of the correction

    # KL to the reference
    kl_coef: float | None = None  # weight of the KL; 0: no reference model
    kl_in: Literal["loss", "reward"] | None = None  # where the KL to the reference is paid
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # docs/algorithms.md
    kl_target: float | None = None  # adapt kl_coef to hold this KL (mean per token); null: fixed
    kl_horizon: int = 10000  # samples in which the adaptive kl_coef changes by at most a fifth

    # rewards of whole responses, in this order
    normalize_rewards: bool = False  # by their running mean and standard deviation
    overlong_buffer: float | None = None  # last share of max_new_tokens, penalized; 0: none
    overlong_penalty: float = 1.0  # at the end of that buffer; it grows from 0 at the beginning
    length_penalty: float = 0.0  # for max_new_tokens; proportionally less for a shorter response
    truncation_coef: float | None = None  # factor on a truncated one; < 0: replaces it
    reward_clip: float | None = None  # rewards are clipped to [-reward_clip, reward_clip]

    # advantages
    gamma: float = 1.0  # discount per token
    gae_lambda: float = 1.0  # of generalized advantage estimation, with a critic
    value_clip: float | None = 0.5  # most that a value may move in an update; null: no bound
    advantage_normalization: Literal["none", "mean", "std"] | None = None  # over the tokens

    # what is trained on, and how often
    dynamic_filtering: bool | None = None  # replace prompts whose samples all got the same reward
    max_refills: int = 10  # how often a step samples replacements before it takes what it has
    epochs: int = 1  # passes over a rollout
    updates_per_rollout: int = 1  # optimizer steps per pass
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
    export: bool = False  # write the critic beside the model at the end


@dataclass(frozen=True)
class ReferenceConfig:
    """The reference on ranks of its own: see cluster.reference_ranks."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
