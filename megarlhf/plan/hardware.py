"""What GPUs and links can do, from a data file, and what of it is reached: constants to calibrate."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from megarlhf.errors import UserError

FILE = Path(__file__).with_name("hardware.json")
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU and its links; figures of the maker's data sheets, links in one direction.

    Attributes:
        name: As in ``cluster.gpu``.
        memory_gib: What a process finds, GiB.
        tflops_bf16: Dense matrix products, 10^12 operations a second.
        memory_gb_s: Bandwidth of its memory, 10^9 bytes a second.
        link_gb_s: To the other GPUs of its node (NVLink, or PCIe where there is none).
        network_gb_s: Its share of the node's network.
        host_gb_s: To the host's memory.
    """

    name: str
    memory_gib: float
    tflops_bf16: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    host_gb_s: float

    @property
    def nbytes(self) -> int:
        """Its memory in bytes."""
        return int(self.memory_gib * GIB)


@dataclass(frozen=True)
class Calibration:
    """What no data sheet says. The defaults are estimates; measure your own and give them.

    Attributes:
        products: Share of ``tflops_bf16`` that matrix products of the trainer reach.
        attention: The same of attention.
        memory: Share of the memory's bandwidth that everything else of the trainer reaches.
        links: Share of a link's bandwidth that collectives reach.
        decoding: Share of the memory's bandwidth that an engine reaches while decoding.
        prefill: Share of ``tflops_bf16`` that an engine reaches on prompts.
        layer_us: Of an engine, microseconds a layer of each decoding step that no bandwidth explains.
        hop_us: Microseconds that a collective takes at least.
        context_gib: CUDA's context and loaded kernels, of each process.
        communication_gib: NCCL's buffers, of each process of several.
        workspace_gib: Of matrix products and attention's backward pass.
        engine_gib: vLLM's activations and workspaces.
        host_adam_gb_s: What Adam on the host reads and writes for each GPU, 10^9 bytes a second.
        fragmentation: Share of activations and logits that the allocator loses.
    """

    products: float = 0.65
    attention: float = 0.45
    memory: float = 0.75
    links: float = 0.7
    decoding: float = 0.6
    prefill: float = 0.5
    layer_us: float = 80.0
    hop_us: float = 20.0
    context_gib: float = 0.6
    communication_gib: float = 0.8
    workspace_gib: float = 0.3
    engine_gib: float = 1.5
    host_adam_gb_s: float = 16.0
    fragmentation: float = 0.05


def gpu(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        UserError: It is not in the data file.
    """
    known = json.loads(FILE.read_text())
    if name not in known:
        raise UserError(
            f"no figures of a GPU called {name!r}",
            where="cluster.gpu",
            fix=f"use one of {', '.join(known)}, or add it to {FILE}",
        )
    return Gpu(name, **known[name])


def calibrated(pairs: Sequence[str]) -> Calibration:
    """The defaults with ``name=value`` pairs.

    Raises:
        UserError: No such constant, or not a number.
    """
    names = [field.name for field in fields(Calibration)]
    values = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = -1.0
        if name not in names or values[name] < 0:
            raise UserError(
                f"{pair!r} is no constant and its value",
                where="--calibrate",
                fix=f"give name=number, of {', '.join(names)}",
            )
    return replace(Calibration(), **values)
