"""What a stretch of code was counted to need."""

from dataclasses import dataclass, field

ACTIVATIONS, LOGITS = "activations", "logits"
LESSONS = "lessons"  # what a teacher says, kept until its student has taken a step


@dataclass
class Traffic:
    """Bytes that this rank gives to collectives of one kind over one group.

    Attributes:
        group: Its ranks.
        kind: The collective, e.g. ``allreduce``; of torch's several of one kind their common name.
        calls: How often.
        nbytes: Of the largest tensor on either side, summed over the calls.
    """

    group: tuple[int, ...]
    kind: str
    calls: int = 0
    nbytes: int = 0


@dataclass
class Usage:
    """What was counted.

    Attributes:
        peaks: Bytes by kind at the moment of the highest total; of each part (see `Meter.part`).
        flops: Floating-point operations of matrix products and attention.
        attention_flops: Those of attention among them, causal masks counted as half.
        moved: Bytes read and written by all other operators.
        traffic: By group and kind.
    """

    peaks: dict[str, dict[str, int]] = field(default_factory=dict)
    flops: int = 0
    attention_flops: int = 0
    moved: int = 0
    traffic: dict[tuple[tuple[int, ...], str], Traffic] = field(default_factory=dict)

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by kind at the moment of the highest total of all."""
        return max(self.peaks.values(), key=lambda kinds: sum(kinds.values()), default={})
