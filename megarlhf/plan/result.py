"""A plan: who needs how much of which GPU, whether it fits, and how long a step takes."""

from dataclasses import dataclass, field
from typing import Any

from megarlhf.plan.places import Place
from megarlhf.plan.roles import TRAIN
from megarlhf.plan.sampling import Sampling
from megarlhf.plan.subject import Subject
from megarlhf.plan.timeline import Span


@dataclass
class Plan:
    """What was found.

    Attributes:
        subject: What was planned.
        places: GPUs by what they hold, and its memory.
        spans: The step's phases in time.
        tokens: Of a step, all sequences together.
        useful_flops: That the mathematics of a step's training asks for, over all ranks.
        sampling: Of an RL run.
        notes: What the reader has to know.
    """

    subject: Subject
    places: list[Place]
    spans: list[Span]
    tokens: int
    useful_flops: float
    sampling: Sampling | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst of the places'."""
        order = ("fits", "tight", "does not fit")
        verdicts = [place.verdict for place in self.places]
        if self.missing_gpus > 0:
            verdicts.append("does not fit")
        return max(verdicts, key=order.index)

    @property
    def used_gpus(self) -> int:
        """All that the run takes."""
        return sum(place.gpus for place in self.places)

    @property
    def missing_gpus(self) -> int:
        """More than there are, or 0."""
        return max(0, self.used_gpus - self.subject.gpus)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(span.begin + span.seconds for span in self.spans)

    @property
    def tokens_a_second(self) -> float:
        """A GPU: prompts and responses, of the whole step."""
        return self.tokens / self.seconds / self.used_gpus

    @property
    def mfu(self) -> float:
        """Share of the used GPUs' arithmetic that the step's training needs, over its training time."""
        trained = [span for span in self.spans if span.name.startswith(TRAIN)]
        begin = min(span.begin for span in trained)
        seconds = max(span.begin + span.seconds for span in trained) - begin
        gpus = sum(p.gpus for p in self.places if TRAIN in p.phases)
        return self.useful_flops / (seconds * gpus * self.subject.gpu.tflops_bf16 * 1e12)

    @property
    def bottleneck(self) -> tuple[str, str]:
        """The longest phase and what takes most of it."""
        span = max(self.spans, key=lambda span: span.seconds)
        return span.name, max(span.parts, key=span.parts.__getitem__)


def as_dict(plan: Plan) -> dict[str, Any]:
    """For ``--json``: bytes and seconds."""
    bottleneck, sampling = plan.bottleneck, plan.sampling
    return {
        "config": plan.subject.name,
        "gpu": plan.subject.gpu.name,
        "gpus": plan.subject.gpus,
        "used_gpus": plan.used_gpus,
        "verdict": plan.verdict,
        "places": [
            {
                "name": place.name,
                "gpus": place.gpus,
                "memory": place.memory,
                "peak": place.peak,
                "worst_phase": place.worst,
                "verdict": place.verdict,
                "problem": place.problem,
                "phases": place.phases,
                "host": place.host,
            }
            for place in plan.places
        ],
        "engines": None if sampling is None else vars(sampling.engines),
        "stream": None if sampling is None else vars(sampling.stream),
        "spans": [vars(span) for span in plan.spans],
        "seconds": plan.seconds,
        "tokens_per_second_per_gpu": plan.tokens_a_second,
        "mfu": plan.mfu,
        "bottleneck": {"phase": bottleneck[0], "what": bottleneck[1]},
        "calibration": vars(plan.subject.calibration),
        "notes": plan.notes,
    }
