"""A model of a run: on how many ranks, in which layout, and what it is asked to do in a step."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from megarlhf.config.schema import LoraConfig, ModelConfig, OptimizerConfig
from megarlhf.engine.loss import TokenLoss
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology

ShapeOf = Callable[[str], Path]  # from a model's path to the directory of its ``config.json``

SCORE, TRAIN = "score", "train"


@dataclass(frozen=True)
class Work:
    """What a model is asked to do with a batch.

    Attributes:
        sequences: Over all ranks.
        tokens: Of each.
        fields: Names of the per-token fields that the loss reads.
        values: Names of its numbers of whole sequences.
        in_a_row: Sequences that have to be in one micro-batch.
        times: How often in a step of the run.
        trained: Of each, at its end: the tokens whose predictions are trained on; None: all.
        samples: Of one prompt (what is before those), which are behind each other.
    """

    sequences: int
    tokens: int
    fields: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    in_a_row: int = 1
    times: int = 1
    trained: int | None = None
    samples: int = 1


@dataclass(frozen=True)
class Role:
    """A model of the run.

    Attributes:
        name: actor, critic, reference, reward NAME; of an offline run: model, reference.
        ranks: Whose processes it is in: a role's name.
        spec: The model.
        config: Its settings.
        topology: Its layout.
        micro_batch_tokens: Of a packed forward pass.
        optimizer: Where it is trained.
        loss: Where it is trained.
        work: By phase of the step.
        lora: Its adapters.
        averaging: The decay of the average of its weights that is kept.
        is_borrowed: It is the trained model of these ranks with its adapters off: it has no weights.
        share: Whether beginnings that sequences have in common are run once.
        student: Whom it teaches.
    """

    name: str
    ranks: str
    spec: ModelSpec
    config: ModelConfig
    topology: Topology
    micro_batch_tokens: int
    optimizer: OptimizerConfig | None = None
    loss: TokenLoss | None = None
    work: dict[str, Work] = field(default_factory=dict)
    lora: LoraConfig = field(default_factory=LoraConfig)
    averaging: float | None = None
    is_borrowed: bool = False
    share: bool = False
    student: "Role | None" = None


def before_training(role: Role, name: str, work: Work) -> Role:
    """The same model on the same ranks, not trained: another one, or the one itself without adapters."""
    plain = replace(work, fields=(), values=(), times=1)
    return replace(
        role,
        name=name,
        optimizer=None,
        loss=None,
        averaging=None,
        is_borrowed=role.lora.is_on,
        work={SCORE: plain},
    )
