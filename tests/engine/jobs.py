"""What the ranks run in the engine's tests."""

import torch

from megarlhf.config.schema import ModelConfig, OptimizerConfig, ParallelConfig
from megarlhf.data.records import Sequence
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology


class NegativeLogLikelihood:
    metric_names = ("nll",)
    temperature = 1.0
    needs_entropy = False

    def __call__(self, logprobs, entropy, batch):
        total = -(logprobs * batch.loss_mask).sum()
        return total, {"nll": total}


def make_sequences(vocab: int, lengths: list[int], seed: int = 0) -> list[Sequence]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for length in lengths:
        ids = torch.randint(0, vocab, (length,), generator=generator).tolist()
        mask = [0.0] * (length // 3 + 1) + [1.0] * (length - length // 3 - 1)
        out.append(Sequence(token_ids=ids, loss_mask=mask))
    return out


def build_engine(rank, world, path, parallel: dict, *, lr=1e-3, micro_batch_tokens=64, dtype="float32"):
    config = ModelConfig(path=path, dtype=dtype, parallel=ParallelConfig(**parallel))
    topology = Topology.of(config.parallel, world)
    groups = make_groups(topology, seed=1)
    return ModelEngine(
        ModelSpec.read(path),
        config,
        topology,
        groups,
        rank,
        micro_batch_tokens=micro_batch_tokens,
        optimizer=OptimizerConfig(lr=lr),
    )


def logprobs_then_train(rank, world, path, parallel, lengths, steps):
    engine = build_engine(rank, world, path, parallel)
    sequences = make_sequences(engine.spec.vocab_size, lengths)
    before = engine.logprobs(sequences)
    metrics = [engine.train_step(sequences, NegativeLogLikelihood(), lr=1e-3) for _ in range(steps)]
    return before, metrics
