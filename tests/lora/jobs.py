"""What the ranks run in the tests of adapters."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from megarlhf.config.schema import ModelConfig, ParallelConfig
from megarlhf.engine import checkpoint
from megarlhf.engine.before_training import BeforeTraining
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.result import write_result
from megarlhf.models.lora.adapter import Adapter, AdapterSpec
from megarlhf.models.lora.attach import Adapters
from megarlhf.models.lora.peft_config import WEIGHTS, read, write_config
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology
from tests.engine import jobs


def write_adapters(directory: Path, model: Path, *, seed=0, head=None, **settings) -> dict:
    """Adapters in PEFT's format in which B is not 0, perhaps of a reward model; their tensors."""
    adapter = Adapter(**{"rank": 3, "alpha": 7.0, "targets": ("all-linear",), **settings})
    spec = AdapterSpec.of(ModelSpec.read(model, scalar_head=head), adapter)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.1 for name, shape in spec.tensors.items()
    }
    directory.mkdir(parents=True)
    save_file(tensors, directory / WEIGHTS)
    write_config(spec, directory)
    return tensors


def build(
    rank, world, path, parallel, start, *, dtype="float32", base=("full",), dropout=0.0, **rest
):
    """An engine that goes on from adapters in files; ``base`` is how its linears are held."""
    parallel = ParallelConfig(**parallel)
    spec, topology = ModelSpec.read(path), Topology.of(parallel, world)
    adapters = read(Path(start), spec)
    adapters = replace(adapters, adapter=replace(adapters.adapter, dropout=dropout))
    return ModelEngine(
        spec,
        ModelConfig(str(path), dtype, parallel=parallel, **rest),
        topology,
        make_groups(topology, seed=1),
        rank,
        micro_batch_tokens=64,
        optimizer=jobs.OPTIMIZER,
        adapters=Adapters(adapters, 1, Path(start), *base),
    )


def train(rank, world, path, parallel, start, sequences, steps, settings):
    """Every step's metrics, and this rank's log-probabilities after them."""
    engine = build(rank, world, path, parallel, start, **settings)
    return jobs.train(engine, sequences, steps), engine.logprobs(sequences)


def write_back(rank, world, path, parallel, start, directory):
    """Adapters that were read are written, unchanged."""
    engine = build(rank, world, path, parallel, start)
    write_result(engine, Path(directory), torch.float32)


def merged_logprobs(rank, world, path, sequences):
    """Log-probabilities of merged weights."""
    return jobs.build(rank, world, path, {}, optimizer=None).logprobs(sequences)


def train_and_compare(rank, world, path, parallel, start, sequences, steps, settings):
    """Every step's metrics; log-probabilities before, and of the reference after."""
    engine = build(rank, world, path, parallel, start, **settings)
    before = engine.logprobs(sequences)
    metrics = jobs.train(engine, sequences, steps)
    reference = BeforeTraining(engine).logprobs(sequences)
    after = engine.logprobs(sequences)  # of all ranks together, whoever knows the result
    assert not before or after != before
    return metrics, before, reference


def save_then_train(rank, world, path, parallel, start, sequences, directory, settings):
    """Two steps, a checkpoint, two more steps; the metrics of those."""
    engine = build(rank, world, path, parallel, start, **settings)
    jobs.train(engine, sequences, 2)
    checkpoint.save(engine, Path(directory))
    return jobs.train(engine, sequences, 2)


def load_then_train(rank, world, path, parallel, start, sequences, directory, settings):
    """A fresh engine goes on from a checkpoint."""
    engine = build(rank, world, path, parallel, start, **settings)
    checkpoint.load(engine, Path(directory))
    return jobs.train(engine, sequences, 2)


def packed(rank, world, path, parallel, start, sequences, steps, double):
    """As `train` with a base in 4 bits; and the bytes of parameters and buffers of each dtype."""
    engine = build(rank, world, path, parallel, start, base=("nf4", double))
    metrics = jobs.train(engine, sequences, steps)
    held = {}
    for chunk in engine.chunks:
        for name, tensor in (*chunk.named_parameters(), *chunk.named_buffers()):
            if "linear_" in name and "_lora" not in name:
                held[tensor.dtype] = held.get(tensor.dtype, 0) + tensor.nbytes
    return metrics, engine.logprobs(sequences), held
