"""One vLLM engine: samples responses, takes new weights from the stream."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megarlhf.data.records import Prompt, Sample
from megarlhf.models.spec import ModelSpec
from megarlhf.rollout.cpu_kernels import latent_settings
from megarlhf.rollout.generation import Generation
from megarlhf.rollout.settings import (
    EngineSettings,
    Sampling,
    gpu_settings,
    prefill_settings,
    stop_token_ids,
)
from megarlhf.startup import building, importing
from megarlhf.sync.engine_layout import untouched_parameters
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.vllm_transport import Notes


class VllmEngine:
    """A vLLM engine in this process. Keep it out of a trainer's process: it binds threads.

    Its methods may be called from several threads.

    Args:
        settings: What to build.
    """

    def __init__(self, settings: EngineSettings) -> None:
        with importing():
            from transformers import AutoTokenizer
            from vllm import LLM
            from vllm.config import WeightTransferConfig

            from megarlhf.sync.receiver import BACKEND, EXTENSION

        self._settings, spec = settings, ModelSpec.read(settings.model_path)
        self._tokenizer = AutoTokenizer.from_pretrained(settings.model_path)
        self._stop_ids = stop_token_ids(Path(settings.model_path), self._tokenizer.eos_token_id)
        with building():
            self._llm = LLM(
                settings.model_path,
                dtype=settings.dtype,
                tensor_parallel_size=settings.tensor_parallel,
                enable_expert_parallel=settings.expert_parallel,
                max_model_len=settings.max_length,
                max_num_seqs=settings.max_sequences,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                enforce_eager=not (settings.cuda_graphs and torch.cuda.is_available()),
                seed=settings.seed,
                skip_tokenizer_init=True,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                worker_extension_cls=EXTENSION,
                weight_transfer_config=WeightTransferConfig(backend=settings.transfer or BACKEND),
                enable_sleep_mode=settings.can_sleep and torch.cuda.is_available(),
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **prefill_settings(settings.max_length),
                **gpu_settings(settings),
                **latent_settings(spec),
            )
        self._llm.update_weight_version("0")
        # What is not trained does not come again either.
        untouched = untouched_parameters(spec)
        self._sleeps_with_weights = settings.sleeps_with_weights or bool(untouched)
        self._generation = Generation(
            self._llm.llm_engine, settings.during_generation, _settle_device
        )
        self._notes: Notes | None = None

    def ready(self) -> None:
        """Answers once the engine is built."""

    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

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
        params = [
            self._params(prompt, sampling, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        requests = [_tokens_of(prompt) for prompt in prompts]
        outputs = self._generation.run(requests, params)
        return self._samples(prompts, outputs)

    def begin(self, client: str, turns: Sequence[tuple[int, Prompt, Sampling, int]]) -> None:
        """Begin to sample one response each; `collect` returns them.

        Args:
            client: Who asks.
            turns: A key, what to answer, how, with what seed.
        """
        self._generation.begin(
            client,
            [
                (_tokens_of(prompt), self._params(prompt, sampling, seed), (key, prompt))
                for key, prompt, sampling, seed in turns
            ],
        )

    def collect(self, client: str) -> list[tuple[int, Sample]]:
        """A client's responses with their keys, as soon as some are there.

        None where none is on its way.
        """
        found = self._generation.collect(client)
        samples = self._samples(
            [prompt for (_, prompt), _ in found], [output for _, output in found]
        )
        return [(key, sample) for ((key, _), _), (sample,) in zip(found, samples, strict=True)]

    def _params(self, prompt: Prompt, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=sampling.samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=min(
                sampling.max_new_tokens, self._settings.max_length - len(prompt.token_ids)
            ),
            seed=seed if sampling.temperature > 0 else None,
            stop_token_ids=self._stop_ids,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,  # as numbers, not an object a token
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _samples(self, prompts: Sequence[Prompt], outputs: Sequence[Any]) -> list[list[Sample]]:
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
                logprob for _, logprob in zip(ids, choice.logprobs.logprobs, strict=True)
            ],
            policy_version=int(choice.weight_versions[0].version),
            finish_reason=choice.finish_reason,
            text=text,
            version_spans=[(int(span.version), span.end) for span in choice.weight_versions],
        )

    # -- stream -----------------------------------------------------------------------------------

    def join_stream(self, stream: dict[str, Any]) -> None:
        """Meet the trainer's ranks; ``stream`` is a `StreamInfo` as a dictionary."""
        init_info = {"stream": stream}
        if self._settings.transfer is not None:
            self._notes = Notes(StreamInfo(**stream))
            init_info = self._notes.read("init")
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def update_weights(self, version: int) -> None:
        """Receive one update; returns when the engine samples from it.

        What becomes of requests that run meanwhile is ``during_generation``'s.
        """
        with self._generation.paused():
            update_info = {} if self._notes is None else self._notes.read_update()
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": update_info})
            self._llm.finish_weight_update(weight_version=str(version))

    def version(self) -> int:
        """Of the weights that it samples from."""
        return int(self._llm.get_weight_version())

    def stream_fingerprints(self) -> list[Any]:
        """Fingerprints of what every worker computes with: `Receiver.fingerprints`."""
        with self._generation.paused():
            return self._llm.collective_rpc("stream_fingerprints")

    # -- memory -----------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Give back the memory of weights and KV cache, whose values are lost unless they are kept.

        On a CPU vLLM gives back nothing; the sequence is the same.
        """
        self._llm.sleep(level=1 if self._sleeps_with_weights else 2)

    def wake(self, part: str) -> None:
        """Have memory again for ``weights``, to be streamed then, or for the ``kv_cache``."""
        self._llm.wake_up(tags=[part])


def _settle_device() -> None:
    if torch.cuda.is_initialized():  # by a rank in this process; others have one thread each
        torch.cuda.synchronize()


def _tokens_of(prompt: Prompt) -> dict[str, list[int]]:
    return {"prompt_token_ids": list(prompt.token_ids)}
