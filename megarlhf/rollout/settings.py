"""What an engine is built with, and what its process needs to find before."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megarlhf.parallel import host_memory

PLAIN_WEIGHTS = "MEGARLHF_PLAIN_WEIGHTS"  # as in sync/receiver.py, which imports vLLM


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built with.

    Attributes:
        model_path: Hugging Face directory.
        dtype: ``float32`` or ``bfloat16``.
        tensor_parallel: Its ranks.
        expert_parallel: Whether they have whole experts each.
        during_generation: What an update does with requests that run: see `Generation`.
        can_sleep: Whether memory can be given back: see `VllmEngine.sleep`.
        max_length: Longest prompt plus response, tokens.
        max_sequences: Most sequences in flight.
        gpu_memory_utilization: Share of a GPU it may take.
        seed: Of the engine itself (requests bring their own).
        sleeps_with_weights: Asleep it keeps its weights on the host, since not all of them come again.
        transfer: vLLM's own weight-transfer engine that brings new weights; None: our stream.
        cuda_graphs: Whether a GPU replays recorded steps: an update keeps the addresses that they know.
    """

    model_path: str
    dtype: str
    tensor_parallel: int
    expert_parallel: bool
    during_generation: Literal["wait", "abort", "keep"]
    can_sleep: bool
    max_length: int
    max_sequences: int
    gpu_memory_utilization: float
    seed: int
    sleeps_with_weights: bool = False
    transfer: str | None = None
    cuda_graphs: bool = True


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        samples: Responses a prompt.
        temperature: 0 for greedy.
        top_p: Nucleus.
        top_k: -1 for all.
        max_new_tokens: Longest response, tokens.
    """

    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


def prefill_settings(max_length: int) -> dict[str, Any]:
    """On a CPU, take every prompt in one piece.

    vllm 0.32.0 steps a request's own generator back when a part of its prompt has been run, which
    torch's CPU generator cannot do: a seeded request with a long prompt ends the engine.
    """
    if torch.cuda.is_available():
        return {}
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(2048, max_length)}


def gpu_settings(settings: EngineSettings) -> dict[str, Any]:
    """What an engine on GPUs is told beside the rest. As read in vllm 0.32.0."""
    if not torch.cuda.is_available():
        return {}
    # A step that is under way when another thread goes on, or new weights come, would be disturbed.
    found: dict[str, Any] = {"async_scheduling": False}
    if settings.tensor_parallel > 1:
        # Within a placement group of Ray's vLLM would ask Ray for its ranks' GPUs, which we hold.
        found["distributed_executor_backend"] = "mp"
        # Its own all-reduce opens memory by handles that memory which can sleep does not have.
        found["disable_custom_all_reduce"] = settings.can_sleep
    return found


def engine_environment(kv_cache_gib: int, *, on_gpu: bool, packed: bool = True) -> dict[str, str]:
    """Environment variables a process needs before vLLM is imported in it.

    Args:
        kv_cache_gib: Size of the KV cache on a CPU.
        on_gpu: Whether it runs on a GPU.
        packed: On a CPU, whether linears may keep their weights in oneDNN's layout.
    """
    # The scheduler runs in the engine's process: an update falls between two of its steps.
    in_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if on_gpu:  # a process that has asked for GPUs cannot fork ranks that use them
        return {**in_process, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    return {
        **in_process,
        **host_memory.ENVIRONMENT,
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        PLAIN_WEIGHTS: "" if packed else "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }


def stop_token_ids(model_path: Path, eos_token_id: int | None) -> list[int]:
    """Ids that end a response: the tokenizer's EOS and those of ``generation_config.json``."""
    ids = set() if eos_token_id is None else {eos_token_id}
    file = model_path / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    ids.update([named] if isinstance(named, int) else named or [])
    return sorted(ids)
