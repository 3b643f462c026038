"""What the ranks run in the engine's tests."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from megarlhf.algo.loss import TokenMean
from megarlhf.config.schema import ModelConfig, OptimizerConfig, ParallelConfig
from megarlhf.data.records import Sequence
from megarlhf.engine.double import DoubleEngine
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology
from tests.malicious import Malicious

LR = 1e-3
# With the usual eps of 1e-8 Adam turns the rounding of a gradient near zero into a step of full size.
OPTIMIZER = OptimizerConfig(lr=LR, eps=1e-5)


@dataclass
class WeightedLikelihood(TokenMean):
    """-log p with ``loss_weight`` where the sequences have it; unweighted as a metric."""

    temperature: float = 1.0
    needs_entropy: bool = True
    metric_names: tuple[str, ...] = ("nll", "entropy")

    def __call__(self, logprobs, entropy, batch):
        weight = batch.fields.get("loss_weight", 1.0)
        loss = -(logprobs * batch.loss_mask * weight).sum()
        metrics = {"nll": -(logprobs * batch.loss_mask).sum()}
        metrics["entropy"] = (entropy * batch.loss_mask).sum()
        return loss, metrics


def make_sequences(vocab: int, lengths: list[int], *, weighted: bool = False) -> list[Sequence]:
    """Random tokens; the last two thirds of each sequence are trained on."""
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for length in lengths:
        ids = torch.randint(0, vocab, (length,), generator=generator).tolist()
        unseen = length // 3 + 1
        mask = [0.0] * unseen + [1.0] * (length - unseen)
        weights = torch.rand(length, generator=generator).tolist()
        sequences.append(Sequence(ids, mask, {"loss_weight": weights} if weighted else {}))
    return sequences


def make_samples(vocab: int, prompts: list[int], responses: list[int]) -> list[Sequence]:
    """A response of every length to every prompt, all random, weighted."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(0, vocab, (length,), generator=generator).tolist()

    sequences = []
    for before in prompts:
        prompt = draw(before)
        for length in responses:
            weights = torch.rand(length, generator=generator).tolist()
            none = [0.0] * before
            fields = {"loss_weight": none + weights}
            sequences.append(Sequence(prompt + draw(length), none + [1.0] * length, fields))
    return sequences


def build(
    rank,
    world,
    path,
    parallel,
    *,
    micro_batch_tokens=64,
    dtype="float32",
    recompute="none",
    optimizer=OPTIMIZER,
    share=False,
    kind=ModelEngine,
) -> ModelEngine:
    config = ModelConfig(
        path=str(path), dtype=dtype, recompute=recompute, parallel=ParallelConfig(**parallel)
    )
    topology = Topology.of(config.parallel, world)
    return kind(
        ModelSpec.read(path),
        config,
        topology,
        make_groups(topology, seed=1),
        rank,
        micro_batch_tokens=micro_batch_tokens,
        optimizer=optimizer,
        share=share,
    )


def train(engine, sequences, steps, loss=None):
    loss = loss or WeightedLikelihood()
    return [engine.train_step(sequences, loss, lr=LR) for _ in range(steps)]


def logprobs_and_train(rank, world, path, parallel, sequences, steps, settings, temperature=1.0):
    """This rank's log-probabilities before, the metrics of every step, log-probabilities after."""
    engine = build(rank, world, path, parallel, **settings)
    before = engine.logprobs(sequences, temperature=temperature)
    metrics = train(engine, sequences, steps, WeightedLikelihood(temperature))
    return before, metrics, engine.logprobs(sequences, temperature=temperature)


def double_gradients(rank, world, path, sequences, share):
    """In float64: log-probabilities, the loss, and the gradient of every parameter."""
    engine = build(rank, world, path, {}, dtype="float64", share=share, kind=DoubleEngine)
    before = engine.logprobs(sequences)
    (metrics,) = train(engine, sequences, 1)
    gradients = {name: p.main_grad.clone() for name, p in engine.chunks[0].named_parameters()}
    return before, metrics["loss"], gradients


def refusal_to_train(rank, world, path, sequences):
    """The `ValueError` that a step raises."""
    try:
        train(build(rank, world, path, {}), sequences, 1)
    except ValueError as error:
        return str(error)
    return None


def save_then_train(rank, world, path, parallel, sequences, directory, settings, steps=2):
    """Some steps, a checkpoint, three more steps; the metrics of those."""
    from megarlhf.engine import checkpoint

    engine = build(rank, world, path, parallel, **settings)
    train(engine, sequences, steps)
    checkpoint.save(engine, Path(directory))
    return train(engine, sequences, 3)


def load_then_train(rank, world, path, parallel, sequences, directory, settings):
    """A fresh engine goes on from a checkpoint."""
    from megarlhf.engine import checkpoint

    engine = build(rank, world, path, parallel, **settings)
    checkpoint.load(engine, Path(directory))
    return train(engine, sequences, 3)


def refusal_to_save(rank, world, path, directory):
    """The `UserError` that saving raises where no file may be larger than 1,000 bytes."""
    import resource

    from megarlhf.engine import checkpoint
    from megarlhf.errors import UserError

    engine = build(rank, world, path, {})
    train(engine, make_sequences(101, (9, 12)), 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        checkpoint.save(engine, Path(directory))
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return ""


def save_twice(rank, world, path, directory, evil_one, mark):
    """A checkpoint, and one that makes a file if whoever reads its random state runs what it finds."""
    from unittest.mock import patch

    from megarlhf.engine import checkpoint

    engine = build(rank, world, path, {})
    checkpoint.save(engine, Path(directory))
    with patch("torch.get_rng_state", lambda: Malicious(os.system, f"touch {mark}")):
        checkpoint.save(engine, Path(evil_one))


def refusal_to_load(rank, world, path, directory):
    """The `UserError` that loading raises."""
    from megarlhf.engine import checkpoint
    from megarlhf.errors import UserError

    engine = build(rank, world, path, {})
    try:
        checkpoint.load(engine, Path(directory))
    except UserError as error:
        return str(error)
    return None


def train_in_small_buckets(rank, world, path, parallel, sequences, steps):
    """As `logprobs_and_train`, but with many gradient buckets, and the weights read in between."""
    from functools import partial
    from unittest.mock import patch

    from megatron.core import distributed

    small = partial(distributed.DistributedDataParallelConfig, bucket_size=2000)
    with patch.object(distributed, "DistributedDataParallelConfig", small):
        engine = build(rank, world, path, parallel)
    if parallel["overlap"] and engine.place.pp == 0:  # later stages never have several
        assert len(engine.wrapped[0].bucket_groups) > 1
    metrics = train(engine, sequences, steps)
    weights = {
        f"{index}.{name}": parameter.detach().clone()
        for index, chunk in enumerate(engine.chunks)
        for name, parameter in chunk.named_parameters()
    }
    return metrics + train(engine, sequences, 1), weights, engine.logprobs(sequences)


def train_with_offload(rank, world, path, parallel, sequences, dtype, parts):
    """Three steps, everything in ``parts`` given back and filled again between them, weights first.

    Returns the metrics, the bytes given back and whether storages were empty meanwhile.
    """
    engine = build(rank, world, path, parallel, dtype=dtype)
    metrics, freed, empty = [], 0, True
    for _ in range(3):
        metrics += train(engine, sequences, 1)
        if not parts:
            continue
        freed = engine.offload(*parts)
        for part in parts:
            empty &= all(t.untyped_storage().nbytes() == 0 for t in engine._tensors_of(part))
        engine.reload("weights")
        engine.logprobs(sequences)  # needs no more
        engine.reload()
    return metrics, freed, empty
