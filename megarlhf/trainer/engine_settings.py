"""What the engines of a run are built with, and how they sample rollouts."""

from megarlhf.config.schema import RLConfig, RolloutConfig
from megarlhf.rollout.settings import EngineSettings, Sampling


def engine_settings(config: RLConfig) -> EngineSettings:
    """The settings that a configuration implies."""
    rollout = config.rollout
    return EngineSettings(
        model_path=config.model.path,
        dtype=rollout.dtype or config.model.dtype,
        tensor_parallel=rollout.tensor_parallel,
        expert_parallel=rollout.expert_parallel,
        during_generation=config.stream.during_generation
        or ("keep" if rollout.async_steps else "wait"),
        can_sleep=rollout.placement == "colocated",
        max_length=config.data.max_prompt_tokens + rollout.max_new_tokens,
        max_sequences=rollout.max_sequences,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        cuda_graphs=rollout.cuda_graphs,
        seed=config.train.seed,
        sleeps_with_weights=config.lora.is_on,
        transfer="nccl_m2n" if config.stream.transport == "nccl_m2n" else None,
    )


def rollout_sampling(rollout: RolloutConfig) -> Sampling:
    """How responses to training prompts are sampled."""
    return Sampling(
        samples=rollout.samples_per_prompt,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        max_new_tokens=rollout.max_new_tokens,
    )
