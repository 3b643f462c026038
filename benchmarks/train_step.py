"""Tokens a second of a training step: ours, a bare Megatron-Core loop, Hugging Face's model.

One process, one thread, the three in turns, on sequences of one length; then ours packed and padded on
sequences of a realistic spread of lengths.
"""

import argparse
import functools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.timing import table, take_turns, write_json
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import ModelConfig, OptimizerConfig
from megarlhf.data.records import Sequence
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.build import DTYPES, transformer_config
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel import device
from megarlhf.parallel.groups import join_world, make_groups
from megarlhf.parallel.topology import Topology

SIZES = {
    "20m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8},
    "90m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
}
VOCABULARY = 8192
LR = 1e-5


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="20m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences of a forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    join_world(0, 1, dist.HashStore())
    with tempfile.TemporaryDirectory() as directory:
        subjects = Subjects(options, Path(directory))
        rows = subjects.equal_lengths() + subjects.spread_lengths()
    print(table(rows))
    write_json(options.json, {**vars(options), "json": None, "rows": rows})
    torch.distributed.destroy_process_group()


class Subjects:
    """The same model three times, and what to feed it."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.path = write_model(directory, options.size)
        self.spec = ModelSpec.read(self.path)
        self.topology = Topology(world=1)
        self.groups = make_groups(self.topology, seed=1)
        self.tokens = options.micro_batch * options.length
        self.engine = ModelEngine(
            self.spec,
            ModelConfig(path=str(self.path), dtype=options.dtype),
            self.topology,
            self.groups,
            0,
            micro_batch_tokens=self.tokens,
            optimizer=OptimizerConfig(lr=LR),
        )

    def equal_lengths(self) -> list[dict[str, Any]]:
        """Ours, Megatron and Hugging Face on sequences of one length."""
        options = self.options
        ids = torch.randint(0, VOCABULARY, (options.sequences, options.length))
        batches = ids.to(self.engine.device).split(options.micro_batch)
        sequences = [as_sequence(row.tolist()) for row in ids]
        seconds = take_turns(
            {
                "megarlhf": functools.partial(self._step, sequences),
                "Megatron-Core": megatron_step(
                    self.spec, self.topology, self.groups, options.dtype
                )(batches),
                "Hugging Face": huggingface_step(self.path, options.dtype)(batches),
            },
            rounds=options.rounds,
        )
        base = seconds["Megatron-Core"]
        return [
            {"batch": "equal lengths", "step": name, "tokens/s": ids.numel() / s, "ratio": base / s}
            for name, s in seconds.items()
        ]

    def spread_lengths(self) -> list[dict[str, Any]]:
        """Ours on ragged sequences, packed, and padded to the longest one."""
        rng = random.Random(0)
        longest = self.options.length
        lengths = [
            max(16, min(longest, round(rng.lognormvariate(0, 0.7) * longest / 4)))
            for _ in range(4 * self.options.sequences)
        ]
        packed = [as_sequence([rng.randrange(VOCABULARY) for _ in range(n)]) for n in lengths]
        padded = [
            Sequence(
                [*s.token_ids, *[0] * (longest - len(s.token_ids))],
                [*s.loss_mask, *[0.0] * (longest - len(s.token_ids))],
            )
            for s in packed
        ]
        seconds = take_turns(
            {
                "packed": functools.partial(self._step, packed),
                "padded": functools.partial(self._step, padded),
            },
            rounds=self.options.rounds,
            warmup=1,
        )
        base = seconds["padded"]
        return [
            {"batch": "spread", "step": name, "tokens/s": sum(lengths) / s, "ratio": base / s}
            for name, s in seconds.items()
        ]

    def _step(self, sequences: list[Sequence]) -> None:
        self.engine.train_step(sequences, NegativeLogLikelihood(), lr=LR)


def as_sequence(token_ids: list[int]) -> Sequence:
    """All of it trained on."""
    return Sequence(token_ids, [0.0] + [1.0] * (len(token_ids) - 1))


def write_model(directory: Path, size: str) -> Path:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = SIZES[size]
    heads = settings["hidden_size"] // 64
    config = LlamaConfig(
        **settings,
        vocab_size=VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


Step = Callable[[], Any]
Batches = tuple[torch.Tensor, ...]


def megatron_step(
    spec: ModelSpec, topology: Topology, groups: Any, dtype: str
) -> Callable[[Batches], Step]:
    """Megatron's own layers, loss, data parallelism, schedule and optimizer, nothing of ours around."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func

    config = transformer_config(spec, topology, dtype=dtype)
    config.perform_initialization = True
    config.calculate_per_token_loss = False
    config.masked_softmax_fusion = False
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=spec.vocab_size,
        max_sequence_length=int(spec.settings["max_sequence_length"]),
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        pg_collection=groups,
    ).to(device.prepare())
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True),
        model,
        pg_collection=groups,
    )
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=LR,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=True,
        ),
        [wrapped],
        use_gloo_process_groups=False,
        pg_collection=groups,
    )
    config.finalize_model_grads_func = finalize_model_grads

    def forward_step(iterator: Any, chunk: Any) -> tuple[torch.Tensor, Any]:
        ids = next(iterator)
        length = ids.shape[1]
        positions = torch.arange(length, device=ids.device).expand_as(ids)
        mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        labels = torch.roll(ids, -1, dims=1)
        losses = chunk(ids, positions, mask[None, None], labels=labels)
        return losses, lambda output: (output.float().mean(), {})

    def run(batches: Batches) -> None:
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=wrapped,
            num_microbatches=len(batches),
            seq_length=batches[0].shape[1],
            micro_batch_size=batches[0].shape[0],
            forward_only=False,
        )
        optimizer.step()

    return lambda batches: functools.partial(run, batches)


def huggingface_step(path: Path, dtype: str) -> Callable[[Batches], Step]:
    """Hugging Face's model with its default attention and torch's fused AdamW."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
    model.to(device.prepare()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def run(batches: Batches) -> None:
        optimizer.zero_grad()
        for ids in batches:
            (model(ids, labels=ids).loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return lambda batches: functools.partial(run, batches)


if __name__ == "__main__":
    main()
