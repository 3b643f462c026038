"""Llamas of a few thousand parameters, as Hugging Face directories."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import Parameter, parameters_of
from megarlhf.parallel.topology import Topology

CONFIG = {
    "vocab_size": 101,  # no tensor-parallel size divides it
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def write_llama(directory: Path, *, seed: int = 0, **settings) -> Path:
    """A model in which no two tensors, norms included, are alike."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, "dtype": "float32", **settings}))
        for parameter in model.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            torch.nn.init.normal_(parameter, mean, 0.15)
    model.save_pretrained(directory)
    return directory


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every safetensors file."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


class StandIn:
    """Holds what a Megatron chunk would, without Megatron: enough to load and to stream."""

    def __init__(self, parameters: Iterable[Parameter], device: torch.device | str = "cpu") -> None:
        nan = float("nan")  # what nobody sets shows
        self._parameters = {p.name: torch.full(p.shape, nan, device=device) for p in parameters}

    def named_parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self._parameters.items()

    def named_modules(self) -> Iterable[tuple[str, torch.nn.Module]]:
        return ()


def stand_ins(spec: ModelSpec, topology: Topology, rank: int) -> list[StandIn]:
    """The chunks of a rank, not loaded."""
    held = parameters_of(spec, topology, rank)
    return [StandIn(p for p in held if p.chunk == chunk) for chunk in range(topology.vpp)]
