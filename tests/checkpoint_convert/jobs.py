"""What the ranks run in the converter's tests."""

from pathlib import Path

import torch

from megarlhf.config.schema import ModelConfig, ParallelConfig
from megarlhf.engine import checkpoint
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology


def load_and_save(rank, world, path, parallel, converted, saved):
    """Parameters that Megatron's own loader does not set as ours; then a checkpoint is saved.

    Args:
        rank: This rank.
        world: Their number.
        path: A Hugging Face directory.
        parallel: The layout.
        converted: The same model, converted under another layout.
        saved: An empty directory.
    """
    from megatron.core import dist_checkpointing

    config = ModelConfig(path=str(path), dtype="float32", parallel=ParallelConfig(**parallel))
    topology = Topology.of(config.parallel, world)
    groups = make_groups(topology, seed=1)
    engine = ModelEngine(
        ModelSpec.read(path), config, topology, groups, rank, micro_batch_tokens=64
    )
    expected = [
        {name: value.clone() for name, value in chunk.named_parameters()} for chunk in engine.chunks
    ]
    for chunk in engine.chunks:
        for parameter in chunk.parameters():
            parameter.data.fill_(float("nan"))
    state = {
        f"model{index}": chunk.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
        for index, chunk in enumerate(engine.chunks)
    }
    state = dist_checkpointing.load(state, str(converted))
    for index, chunk in enumerate(engine.chunks):
        chunk.load_state_dict(state[f"model{index}"])
    wrong = [
        name
        for before, chunk in zip(expected, engine.chunks, strict=True)
        for name, value in chunk.named_parameters()
        if not torch.equal(value, before[name])
    ]
    checkpoint.save(engine, Path(saved))
    return wrong


def verify_logits(rank, world, first, second):
    """Exit status and output of the command."""
    import contextlib
    import io

    from tools.checkpoint_convert.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(["verify", str(first), str(second), "--logits"])
    return status, out.getvalue()


def convert_together(rank, world, *arguments):
    """One of several processes of a conversion."""
    from tools.checkpoint_convert.cli import main

    return main([str(argument) for argument in arguments])
