"""What grows with a model's layers in a straight line is counted on few of them."""

from collections.abc import Callable
from dataclasses import replace

from megarlhf.models.spec import ModelSpec


def have_equal_layers(spec: ModelSpec) -> bool:
    """Whether one layer is as any other."""
    mixtures = {spec.is_mixture(layer) for layer in range(spec.num_layers)}
    return len(mixtures) == 1 and not spec.settings.get("window_size")


def with_layers(spec: ModelSpec, layers: int) -> ModelSpec:
    """The same model with so many layers."""
    return replace(spec, settings={**spec.settings, "num_layers": layers})


def of_all_layers(spec: ModelSpec, count: Callable[[ModelSpec], int]) -> int:
    """What is counted of a model: exactly, of one and of two layers where all are equal."""
    if spec.num_layers <= 2 or not have_equal_layers(spec):
        return count(spec)
    low, high = (count(with_layers(spec, layers)) for layers in (1, 2))
    return low + (high - low) * (spec.num_layers - 1)
