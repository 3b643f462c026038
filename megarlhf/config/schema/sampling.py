"""Sections about responses: how they are sampled, by which weights, and how they are scored."""

from dataclasses import dataclass, field
from typing import Literal

from megarlhf.config.schema.common import ParallelConfig


@dataclass(frozen=True)
class RewardConfig:
    """How a response is scored: the weighted sum of what one or several sources say."""

    function: str | None = None  # a Python file that defines reward_func(queries, prompts, labels)
    models: tuple[str, ...] = ()  # directories of reward models; NAME=DIR for several
    urls: tuple[str, ...] = ()  # servers of a reward model; NAME=URL for several models
    weights: tuple[float, ...] = ()  # of function, models and urls, in this order; []: 1 each
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # of each of models
    workers: int = 1  # processes that run the function; 0: the driver itself, without a timeout
    batch_size: int = 64  # most responses in a call of the function or in a request
    timeout_s: float = 60.0  # longest that such a call or request may take
    retries: int = 3  # how many times a failing one is repeated
    on_failure: Literal["stop", "drop"] = "stop"  # then: end the run, or go on without the sample


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled: vLLM engines and sampling parameters."""

    engines: int = 1  # vLLM engines
    tensor_parallel: int = 1  # ranks of each engine
    expert_parallel: bool = False  # mixtures: whole experts on each rank, not parts of all
    placement: Literal["separate", "colocated"] = "separate"  # colocated: shares the GPUs
    dtype: Literal["float32", "bfloat16"] | None = None  # null: the trained model's
    async_steps: int = 0  # most steps that sampling may run ahead of training; 0: they take turns
    prompts_per_step: int = 128
    samples_per_prompt: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 1024
    max_sequences: int = 256  # that an engine runs at the same time
    gpu_memory_utilization: float = 0.85  # share of a GPU that an engine takes
    cuda_graphs: bool = True  # GPU only: replay recorded decoding steps (false: eager)
    kv_cache_gib: int = 1  # CPU backend only: size of the KV cache
    share_prompts: bool = True  # when training, run a prompt once for all of its samples
    packed_weights: bool = True  # CPU backend only: sampling is faster, updates are slower
    timeout_s: float = 3600.0  # longest that an engine may take for its share of a rollout


@dataclass(frozen=True)
class StreamConfig:
    """How new weights get into the engines, and what happens to an engine that is lost."""

    transport: Literal["auto", "gloo", "shared_memory", "nccl", "cuda_ipc", "nccl_m2n"] = "auto"
    bucket_mib: int = 32  # how much is sent at a time; there are at most two such buckets
    verify: Literal["always", "first", "never"] = "first"  # compare weights by hashes
    verify_every: int = 50  # with verify=first: and again after so many updates; 0: never
    during_generation: Literal["wait", "abort", "keep"] | None = (
        None  # what becomes of running requests; null: keep where sampling runs ahead, else wait
    )
    restarts: int = 3  # how many times a run may replace an engine that died or does not answer
