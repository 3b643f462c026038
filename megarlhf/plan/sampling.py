"""The engines' part of an RL step."""

from dataclasses import dataclass

from megarlhf.plan.decoding import Generation
from megarlhf.plan.engines import EngineNeeds, StreamNeeds
from megarlhf.plan.places import Place


@dataclass(frozen=True)
class Sampling:
    """What was found of the engines.

    Attributes:
        engines: A rank of theirs.
        stream: A weight update.
        place: Their GPUs, as if they had them for themselves.
        generated: A rollout.
        update_seconds: Of a weight update.
        ahead: Whether they sample for the next step meanwhile.
    """

    engines: EngineNeeds
    stream: StreamNeeds
    place: Place
    generated: Generation
    update_seconds: float
    ahead: bool
