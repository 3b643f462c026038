"""What the ranks run in the tests of adapters."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from megarlhf.config.schema import ModelConfig, ParallelConfig
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.lora.adapter import Adapter, AdapterSpec
from megarlhf.models.lora.attach import Adapters
from megarlhf.models.lora.peft_config import WEIGHTS, read, write_config
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology
from tests.engine import jobs


def write_adapters(directory: Path, model: Path, *, seed=0, **settings) -> dict:
    """Adapters in PEFT's format in which B is not 0; their tensors."""
    adapter = Adapter(**{"rank": 3, "alpha": 7.0, "targets": ("all-linear",), **settings})
    spec = AdapterSpec.of(ModelSpec.read(model), adapter)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.2 for name, shape in spec.tensors.items()
    }
    directory.mkdir(parents=True)
    save_file(tensors, directory / WEIGHTS)
    write_config(spec, directory)
    return tensors


def build(rank, world, path, parallel, start, *, dtype="float32", base="full", **settings):
    """An engine that goes on from adapters in files."""
    recompute, experts = settings.pop("recompute", "none"), settings.pop("experts", "auto")
    parallel = ParallelConfig(**parallel)
    config = ModelConfig(str(path), dtype, recompute, experts=experts, parallel=parallel)
    spec, topology = ModelSpec.read(path), Topology.of(parallel, world)
    return ModelEngine(
        spec,
        config,
        topology,
        make_groups(topology, seed=1),
        rank,
        micro_batch_tokens=64,
        optimizer=jobs.OPTIMIZER,
        adapters=Adapters(read(Path(start), spec), seed=1, start=Path(start), base=base),
    )


def train(rank, world, path, parallel, start, sequences, steps, settings):
    """Every step's metrics, and this rank's log-probabilities after them."""
    engine = build(rank, world, path, parallel, start, **settings)
    return jobs.train(engine, sequences, steps), engine.logprobs(sequences)
