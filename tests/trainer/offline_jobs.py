"""What the ranks run in the tests of the offline methods."""

import os
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

from megarlhf.config.loader import load
from megarlhf.config.schema import KDConfig, OptimizerConfig
from megarlhf.data.records import Example, Sequence
from megarlhf.engine.before_training import before_training
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import join_world, make_groups
from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.trainer.methods import METHODS
from megarlhf.trainer.preparation import Parts

# With the usual eps of 1e-8 Adam turns the rounding of a gradient near zero into a step of full size.
OPTIMIZER = OptimizerConfig(lr=1e-3, eps=1e-5)
# The teacher's layout is another than the student's wherever there is a choice.
TEACHER = {
    2: ["teacher.parallel.tensor=2"],
    4: ["teacher.parallel.tensor=2", "teacher.parallel.context=2"],
}


def make_examples(vocab: int, count: int, *, seed: int = 0) -> dict[str, list[Example]]:
    """Random rows of ragged lengths, for every method by its name."""
    rng = random.Random(seed)

    def tokens(length):
        return [rng.randrange(vocab) for _ in range(length)]

    def sequence(prompt, length, **fields):
        mask = [0.0] * len(prompt) + [1.0] * length
        ids = prompt + tokens(length)
        return Sequence(ids, mask, {name: make(ids) for name, make in fields.items()})

    rows = {"single": [], "pairs": [], "steps": [], "unpaired": []}
    for number in range(count):
        prompt = tokens(rng.randint(2, 7))
        lengths = [rng.randint(2, 17) for _ in range(2)]
        pair = [sequence(prompt, length) for length in lengths]
        rows["single"].append(Example(pair[:1], len(prompt)))
        rows["pairs"].append(Example(pair, len(prompt)))
        label = {"desirable": float(number % 3 > 0)}
        rows["unpaired"].append(Example(pair[:1], len(prompt), label))
        judged = sequence(prompt, lengths[0], labels=lambda ids: [rng.random() for _ in ids])
        judged.loss_mask = [
            mask * float(place % 3 == 2 or place == len(judged.loss_mask) - 1)
            for place, mask in enumerate(judged.loss_mask)
        ]
        rows["steps"].append(Example([judged], len(prompt)))
    of = {"rm": "pairs", "dpo": "pairs", "prm": "steps", "kto": "unpaired"}
    return {name: rows[of.get(name, "single")] for name in ("sft", "kd", *of)}


def train_methods(rank, world, path, parallel, runs, examples, held_out, steps, batch):
    """For each run (a configuration's class and overrides): every step's metrics, then held-out ones."""
    groups = None
    results = []
    for cls, overrides in runs:
        settings = [f"model.path={path}", "model.dtype=float32", "train.micro_batch_tokens=64"]
        settings += [f"model.parallel.{key}={value}" for key, value in parallel.items()]
        settings += TEACHER.get(world, []) if cls is KDConfig else []
        config = load(cls, None, [*settings, *overrides])
        method = METHODS[cls]
        spec = ModelSpec.read_scalar(path) if method.scalar_head else ModelSpec.read(path)
        topology = Topology.of(config.model.parallel, world)
        groups = groups or make_groups(topology, seed=1)

        adapters = adapters_of(config.lora, spec, topology, seed=1)

        def build(optimizer=None, adapters=None, *, of=(spec, config, topology, groups)):
            spec, config, topology, groups = of
            return ModelEngine(
                spec,
                config.model,
                topology,
                groups,
                rank,
                micro_batch_tokens=config.train.micro_batch_tokens,
                optimizer=optimizer,
                adapters=adapters,
            )

        engine = build(OPTIMIZER, adapters)
        launched = SimpleNamespace(rank=rank, first=None)
        frozen = partial(before_training, engine, build)
        prepare = method.preparation(Parts(config, engine, frozen, (), Path(), launched))
        found = []
        for step in range(steps):
            rows = examples[method.name]
            drawn = [rows[(step * batch + n) % len(rows)] for n in range(batch)]
            prepared, loss = prepare(drawn)
            found.append(
                engine.train_step(prepared.sequences, loss, lr=1e-3, groups=prepared.groups)
            )
        batches = [held_out[method.name][:3], held_out[method.name][3:]]
        found.append(engine.evaluate(prepare(part) for part in batches))
        results.append(found)
    return results


def count_threads(rank, world):
    """Of this rank's process."""
    return len(os.listdir("/proc/self/task"))


def run_commands(rank, world, runs):
    """Run commands as `torchrun` would; returns the summaries.

    Args:
        rank: This rank.
        world: Number of ranks.
        runs: For each the configuration's class and overrides.
    """
    from megatron.core import parallel_state

    from megarlhf.trainer import offline

    store = dist.distributed_c10d._get_default_store()
    summaries = []
    for number, (cls, overrides) in enumerate(runs):
        if rank == 0:
            agents = serve_store("127.0.0.1")
            store.set(f"port of {number}", str(agents.port))
        port = store.get(f"port of {number}").decode()
        dist.barrier()
        dist.destroy_process_group()
        launched = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        os.environ |= launched
        try:
            summaries.append(offline.train(load(cls, None, overrides)))
        finally:
            parallel_state.destroy_model_parallel()
            for name in launched:
                del os.environ[name]
            if dist.is_initialized():
                dist.destroy_process_group()
            join_world(rank, world, dist.PrefixStore(f"after {number}", store))
    return summaries
