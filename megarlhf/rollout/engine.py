"""One vLLM engine: samples responses, takes new weights from the stream."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megarlhf.data.records import Prompt, Sample


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built with.

    Attributes:
        model_path: Hugging Face directory.
        dtype: ``float32`` or ``bfloat16``.
        tensor_parallel: Its ranks.
        max_length: Longest prompt plus response, tokens.
        max_sequences: Most sequences in flight.
        gpu_memory_utilization: Share of a GPU it may take.
        seed: Of the engine itself (requests bring their own).
    """

    model_path: str
    dtype: str
    tensor_parallel: int
    max_length: int
    max_sequences: int
    gpu_memory_utilization: float
    seed: int


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


class VllmEngine:
    """A vLLM engine in this process. Keep it out of a trainer's process: it binds threads.

    Args:
        settings: What to build.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from transformers import AutoTokenizer
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        from megarlhf.sync.receiver import BACKEND, EXTENSION

        self._settings = settings
        self._tokenizer = AutoTokenizer.from_pretrained(settings.model_path)
        self._stop_ids = stop_token_ids(Path(settings.model_path), self._tokenizer.eos_token_id)
        self._llm = LLM(
            settings.model_path,
            dtype=settings.dtype,
            tensor_parallel_size=settings.tensor_parallel,
            max_model_len=settings.max_length,
            max_num_seqs=settings.max_sequences,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=True,
            seed=settings.seed,
            skip_tokenizer_init=True,
            generation_config="vllm",
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            worker_extension_cls=EXTENSION,
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **_prefill_settings(settings.max_length),
        )
        self._llm.update_weight_version("0")

    def ready(self) -> None:
        """Answers once the engine is built."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Sample responses.

        Args:
            prompts: What to answer.
            sampling: How.
            seeds: One a prompt; a prompt's samples use seed, seed + 1, ...

        Returns:
            For each prompt, ``sampling.samples`` samples.
        """
        from vllm import SamplingParams

        params = [
            SamplingParams(
                n=sampling.samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=min(
                    sampling.max_new_tokens, self._settings.max_length - len(prompt.token_ids)
                ),
                seed=seed if sampling.temperature > 0 else None,
                stop_token_ids=self._stop_ids,
                logprobs=0,
                detokenize=False,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        requests: Any = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        responses = [choice for output in outputs for choice in output.outputs]
        texts = iter(
            self._tokenizer.batch_decode(
                [list(choice.token_ids) for choice in responses], skip_special_tokens=True
            )
        )
        return [
            [self._sample(prompt, choice, next(texts)) for choice in output.outputs]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    @staticmethod
    def _sample(prompt: Prompt, choice: Any, text: str) -> Sample:
        ids = list(choice.token_ids)
        return Sample(
            prompt=prompt,
            response_ids=ids,
            rollout_logprobs=[
                step[token].logprob for token, step in zip(ids, choice.logprobs, strict=True)
            ],
            policy_version=int(choice.weight_versions[0].version),
            finish_reason=choice.finish_reason,
            text=text,
        )

    def join_stream(self, stream: dict[str, Any]) -> None:
        """Meet the trainer's ranks; ``stream`` is a `StreamInfo` as a dictionary."""
        self._llm.init_weight_transfer_engine({"init_info": {"stream": stream}})

    def update_weights(self, version: int) -> None:
        """Receive one update; returns when the engine samples from it."""
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {}})
        self._llm.finish_weight_update(weight_version=str(version))
        self._llm.reset_prefix_cache()  # the old weights' keys must not answer


def _prefill_settings(max_length: int) -> dict[str, Any]:
    """On a CPU, take every prompt in one piece.

    vllm 0.32.0 steps a request's own generator back when a part of its prompt has been run, which
    torch's CPU generator cannot do: a seeded request with a long prompt ends the engine.
    """
    if torch.cuda.is_available():
        return {}
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(2048, max_length)}


def engine_environment(kv_cache_gib: int, *, on_gpu: bool) -> dict[str, str]:
    """Environment variables a process needs before vLLM is imported in it."""
    if on_gpu:
        return {}
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }


def stop_token_ids(model_path: Path, eos_token_id: int | None) -> list[int]:
    """Ids that end a response: the tokenizer's EOS and those of ``generation_config.json``."""
    ids = set() if eos_token_id is None else {eos_token_id}
    file = model_path / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    ids.update([named] if isinstance(named, int) else named or [])
    return sorted(ids)
