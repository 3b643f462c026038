"""GPUs that hold the same, and what lies in their memory in each phase of a step."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from megarlhf.plan.roles import SCORE, TRAIN

GENERATE, STREAM = "generate", "stream"
PHASES = (GENERATE, SCORE, TRAIN, STREAM)
OVERHEAD, ENGINE_WEIGHTS, CACHE, BUCKETS = (
    "overhead",
    "engine weights",
    "KV cache",
    "stream buckets",
)
TIGHT = 0.8  # of a GPU's memory

Kinds = dict[str, int]  # bytes by kind


@dataclass
class Place:
    """GPUs that hold the same: those of one pipeline stage, or of the engines.

    Attributes:
        name: Whose they are.
        gpus: How many.
        memory: Of each, bytes.
        phases: Bytes by phase and kind.
        problem: Why it does not do, where memory alone does not say so.
        is_tight: Whether it does only just, for another reason than memory.
        tight: The share of the memory above which it does only just.
        host: Bytes of the host's memory that each of these GPUs' models take at most: optimizer states
            with ``optimizer.offload=states``, and what lies there while others have the GPU.
    """

    name: str
    gpus: int
    memory: int
    phases: dict[str, Kinds] = field(default_factory=dict)
    problem: str | None = None
    is_tight: bool = False
    tight: float = TIGHT
    host: int = 0

    @property
    def worst(self) -> str:
        """The phase that sets the peak."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.phases[self.worst].values())

    @property
    def verdict(self) -> str:
        """fits, tight, or does not fit."""
        if self.problem or self.peak > self.memory:
            return "does not fit"
        return "tight" if self.is_tight or self.peak > self.tight * self.memory else "fits"


def total(parts: Iterable[Mapping[str, int]]) -> Kinds:
    """The sum of all parts, by kind."""
    found: Counter[str] = Counter()
    for part in parts:
        found.update(part)
    return dict(found)
