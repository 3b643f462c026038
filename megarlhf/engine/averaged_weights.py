"""An exponential moving average of a model's weights, kept beside it on its ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from megarlhf.engine import checkpoint
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.offload import Offloaded


class AveragedWeights:
    """average <- decay * average + (1 - decay) * weights, in fp32, cut as the weights are.

    Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging", with weights that
    decay. What is not trained is not averaged. Every method is collective over the model's ranks.

    Args:
        engine: The model; the average begins as its weights.
        decay: At least 0, less than 1.
    """

    def __init__(self, engine: ModelEngine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self._places = [
            (module, name, weight)
            for chunk in engine.chunks
            for module in chunk.modules()
            for name, weight in module.named_parameters(recurse=False)
            if weight.requires_grad
        ]
        self._averages = {
            weight: weight.detach().to(torch.float32, copy=True) for _, _, weight in self._places
        }
        self._offloaded: Offloaded | None = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The averages."""
        return list(self._averages.values())

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights, which an optimizer step has changed."""
        self._engine.settle()
        for weight, average in self._averages.items():
            average.lerp_(weight.to(torch.float32), 1.0 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for weights, in fp32: to export, save or load it, not to run.

        Its modules have other parameters meanwhile. Another dtype in the same ones would cost them the
        hooks by which Megatron collects their gradients.
        """
        self._engine.settle()
        stand_ins = {weight: nn.Parameter(average) for weight, average in self._averages.items()}
        for weight, stand_in in stand_ins.items():
            vars(stand_in).update(vars(weight))  # Megatron's marks
        for module, name, weight in self._places:
            setattr(module, name, stand_ins[weight])
        try:
            yield
        finally:
            for module, name, weight in self._places:
                setattr(module, name, weight)

    def save(self, directory: Path) -> None:
        """Write a distributed checkpoint; the directory is made."""
        directory.mkdir(exist_ok=True)
        with self.in_place():
            checkpoint.save_weights(self._engine, directory)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, under this model's layout."""
        with self.in_place():
            checkpoint.load_weights(self._engine, directory)

    def offload(self) -> None:
        """Give back its device memory until `reload`."""
        if self._offloaded is None:
            self._offloaded = Offloaded(self._averages.values(), keep=True)

    def reload(self) -> None:
        """Undo `offload`."""
        if self._offloaded is not None:
            self._offloaded.restore()
            self._offloaded = None
