"""Which rank sends which rectangle in which bucket: computed once, replayed at every update.

A pure function of shapes, so both ends compute it for themselves and no names travel with the
weights. Tensors keep their checkpoint order; a bucket holds whole Hugging Face tensors, and a fused
group of the engine (q, k, v) that falls into two buckets still arrives in order.
"""

from dataclasses import dataclass

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import Holding, holdings
from megarlhf.models.weights.operations import Shape
from megarlhf.parallel.topology import Topology


@dataclass(frozen=True)
class Bucket:
    """Tensors that are sent together.

    Attributes:
        tensors: Hugging Face names and shapes, in order.
        parts: For each sending rank, what it packs, in order, into its one message.
    """

    tensors: tuple[tuple[str, Shape], ...]
    parts: dict[int, tuple[Holding, ...]]

    def elements_from(self, rank: int) -> int:
        """Elements in the message of ``rank``."""
        return sum(part.piece.hf.numel for part in self.parts[rank])


def plan_stream(spec: ModelSpec, topology: Topology, bucket_elements: int) -> list[Bucket]:
    """The buckets of one full update.

    Args:
        spec: The model.
        topology: The trainer's layout.
        bucket_elements: A bucket is closed when it holds at least this many elements.
    """
    held = holdings(spec, topology)
    buckets: list[Bucket] = []
    names: list[str] = []
    elements = 0
    for name in spec.tensors:
        names.append(name)
        elements += sum(part.piece.hf.numel for part in held[name])
        if elements >= bucket_elements:
            buckets.append(_bucket(spec, held, names))
            names, elements = [], 0
    if names:
        buckets.append(_bucket(spec, held, names))
    return buckets


def _bucket(spec: ModelSpec, held: dict[str, list[Holding]], names: list[str]) -> Bucket:
    parts: dict[int, list[Holding]] = {}
    for name in names:
        for part in held[name]:
            parts.setdefault(part.rank, []).append(part)
    return Bucket(
        tensors=tuple((name, spec.tensors[name]) for name in names),
        parts={rank: tuple(parts[rank]) for rank in sorted(parts)},
    )
