"""The stream of weights: plans for large models, exact bytes, and updates of live engines on a CPU.

Updates: ours over each transport, the usual way (whole tensors gathered on one rank, sent, and loaded by
vLLM's ``load_weights``) and the floor (one copy of all weights in memory), in turns in one run.
"""

import argparse
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.gather_and_load import GatherAndLoad
from benchmarks.memory import Watch
from benchmarks.shapes import SHAPES, spec_of
from benchmarks.stream_ranks import Ranks
from benchmarks.timing import table, take_turns, write_json
from megarlhf.demo.model import make_model
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineTopology, engine_parameters
from megarlhf.sync.plan import numel, plan_stream
from tests.models.tiny import read_tensors
from tests.rollout.engine_process import EngineProcess, settings_of
from tests.sync import shapes as small

LLAMA = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "head_dim": 64}
SIZES = {
    "90M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "heads": 12},
    "500M": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 17, "heads": 24},
}
VOCABULARY = 8192
BUCKET = 32 * 2**20  # the default of stream.bucket_mib
FLOOR = "floor: one copy"

PLANS = (
    ("8B", Topology(world=8, tp=4), EngineTopology(2, engines=4)),
    ("70B", Topology(world=64, tp=8, pp=4), EngineTopology(8, engines=2)),
    ("235B-A22B", Topology(world=128, tp=4, pp=4, ep=8), EngineTopology(8, True, 4)),
    ("671B", Topology(world=256, tp=8, pp=8, ep=4), EngineTopology(16, True, 4)),
)
EXACT = (
    ("llama", "TP2.PP2", Topology(world=4, tp=2, pp=2), EngineTopology(2)),
    ("llama", "TP4", Topology(world=4, tp=4), EngineTopology(1)),
    ("qwen3-moe", "PP2.EP2", Topology(world=4, pp=2, ep=2), EngineTopology(2)),
    ("qwen3-moe", "EP2.TP2", Topology(world=4, tp=2, ep=2), EngineTopology(2, True)),
    ("tied", "DP4", Topology(world=4), EngineTopology(1, engines=2)),
)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_stream", description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["plans", "bytes", "updates"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["90M"])
    parser.add_argument("--linears", nargs="+", default=["plain", "packed"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--link-gb-s", type=float, default=50.0, help="of each rank, one direction")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "plans": lambda: plans(options.link_gb_s),
        "bytes": exact_bytes,
        "updates": lambda: updates(options),
    }
    found = {}
    for name in options.parts:
        found[name] = parts[name]()
        print(f"{name}\n{table(found[name])}\n", flush=True)
    write_json(options.json, found)


def plans(link_gb_s: float) -> list[dict[str, Any]]:
    """Plans of published models in bf16, 256 MiB buckets; the time is that of the busiest link."""
    rows = []
    for size, trainer, engine in PLANS:
        assert size in SHAPES
        with tempfile.TemporaryDirectory() as directory:
            spec = spec_of(size, Path(directory))
            began = time.process_time()
            plan = plan_stream(spec, trainer, engine, 128 * 2**20)
            seconds = time.process_time() - began
        sent, received, messages = [0] * trainer.world, {}, 0
        for bucket in plan:
            for worker, parts in bucket.messages.items():
                messages += len(parts)
                for sender, moves in parts.items():
                    sent[sender] += 2 * numel(moves)
                    received[worker] = received.get(worker, 0) + 2 * numel(moves)
        busiest = max(*sent, *received.values())
        rows.append(
            {
                "model": size,
                "trainer": _layout(trainer),
                "engines": f"{engine.engines} x TP{engine.tp}" + ".EP" * engine.expert_parallel,
                "messages": messages,
                "GB sent": sum(sent) / 1e9,
                "GB, busiest sender": max(sent) / 1e9,
                "over mean": max(sent) / (sum(sent) / trainer.world),
                "GB, busiest receiver": max(received.values()) / 1e9,
                f"s at {link_gb_s:g} GB/s": busiest / 1e9 / link_gb_s,
                "CPU s planning": seconds,
            }
        )
    return rows


def _layout(topology: Topology) -> str:
    sizes = {"TP": topology.tp, "PP": topology.pp, "EP": topology.ep, "DP": topology.dp}
    return ".".join(f"{name}{size}" for name, size in sizes.items() if size > 1)


def exact_bytes() -> list[dict[str, Any]]:
    """For each rank of an engine, the bytes that the plan sends and those that it keeps (fp32)."""
    rows = []
    for kind, name, trainer, engine in EXACT:
        with tempfile.TemporaryDirectory() as directory:
            spec = small.spec_of(kind, Path(directory))
        plan = plan_stream(spec, trainer, engine, 10_000)
        for number, rank in itertools.product(range(engine.engines), range(engine.tp)):
            messages = [m for b in plan for m in b.messages[number, rank].values()]
            sent = 4 * sum(map(numel, messages))
            kept = 4 * sum(p.kept for p in engine_parameters(spec, engine, rank))
            to = f"TP{engine.tp}" + ".EP" * engine.expert_parallel
            place = {"model": kind, "trainer": name, "engine": f"{to}, engine {number} rank {rank}"}
            rows.append({**place, "sent": sent, "kept": kept, "same": sent == kept})
    return rows


def updates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of an update at best, the ways in turns."""
    rows = []
    for size, linears, ranks in itertools.product(options.sizes, options.linears, options.ranks):
        with tempfile.TemporaryDirectory() as directory:
            path = write_model(Path(directory), size)
            packed = linears == "packed"
            found = _updates(path, size, packed=packed, ranks=ranks, rounds=options.rounds)
        print(table(found), flush=True)
        rows += found
    return rows


def _updates(
    path: Path, size: str, *, packed: bool, ranks: int, rounds: int
) -> list[dict[str, Any]]:
    topology, tensors = Topology(world=ranks, tp=ranks), read_tensors(path)
    process = EngineProcess(settings_of(path), packed=packed)
    trainer = Ranks(path, topology, process)
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        connect = {
            "gather, load_weights": lambda: GatherAndLoad(trainer, shapes, BUCKET, packed=packed),
            "gloo": lambda: _connected(trainer, "gloo"),
            "shared_memory": lambda: _connected(trainer, "shared_memory"),
        }
        ways, extra = {}, {}
        for name, join in connect.items():
            process.call(watch)
            trainer.call("watch")
            ways[name] = join()
            kept, _ = process.call(watched)  # as long as the engine is joined
            process.call(watch)
            ways[name]()
            _, most = process.call(watched)
            extra[name] = kept + most, max(most for _, most in trainer.call("watched"))
        copies = [torch.zeros_like(tensor) for tensor in tensors.values()]
        pairs = list(zip(copies, tensors.values(), strict=True))
        ways[FLOOR] = lambda: [target.copy_(source) for target, source in pairs]
        seconds = take_turns(ways, rounds=rounds, warmup=1, of=min)
    finally:
        process.close()
        trainer.close()
    floor, gather = seconds[FLOOR], seconds["gather, load_weights"]
    return [
        {
            "model": size,
            "MiB": round(sum(tensor.nbytes for tensor in tensors.values()) / 2**20),
            "linears": "packed" if packed else "plain",
            "trainer": f"TP{ranks}",
            "way": name,
            "ms": 1000 * value,
            "times the floor": value / floor,
            "gather / this": gather / value,
            "engine's extra MiB": round(extra[name][0]) if name in extra else "",
            "a rank's extra MiB": round(extra[name][1]) if name in extra else "",
        }
        for name, value in seconds.items()
    ]


def _connected(trainer: Ranks, transport: str) -> Callable[[], None]:
    trainer.connect(transport, BUCKET)
    return functools.partial(trainer.update, transport)


def watch(engine: Any) -> None:
    """Runs in the engine: begin to watch its memory, the weights that it shares included."""
    engine.watch = Watch(anonymous=False)


def watched(engine: Any) -> tuple[float, float]:
    """Runs in the engine: see `Watch.stop`."""
    return engine.watch.stop()


def write_model(directory: Path, size: str) -> Path:
    """A Llama of random weights."""
    make_model(directory, seed=1)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    config = json.loads((directory / "config.json").read_text())
    shape = dict(SIZES[size])
    heads = shape.pop("heads")
    config |= {**LLAMA, **shape, "num_attention_heads": heads, "num_key_value_heads": heads // 3}
    config |= {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {
        name: torch.full(shape, 1.0) if len(shape) == 1 else torch.randn(shape) * 0.02
        for name, shape in ModelSpec.read(directory).tensors.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


if __name__ == "__main__":
    main()
