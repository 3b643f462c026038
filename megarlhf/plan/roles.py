"""The models of a run: on how many ranks, in which layout, and what they are asked to do in a step."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megarlhf.algo import registry
from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.preference_loss import PreferenceLoss
from megarlhf.algo.reward_loss import PairwiseRewardLoss, StepRewardLoss
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.algo.unpaired_loss import UnpairedLoss
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.cluster.placement import reward_role
from megarlhf.config import schema
from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import ModelConfig, OfflineConfig, OptimizerConfig, RLConfig
from megarlhf.engine.loss import TokenLoss
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.context import sequence_sums
from megarlhf.parallel.topology import Topology
from megarlhf.trainer.experience import needs_old_logprobs

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
    """

    sequences: int
    tokens: int
    fields: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    in_a_row: int = 1
    times: int = 1


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


ShapeOf = Callable[[str], Path]


def roles_of(config: RLConfig | OfflineConfig, world: int, shape_of: ShapeOf) -> list[Role]:
    """The models of a run.

    Args:
        config: Of RL or of an offline method.
        world: Ranks of an offline run; RL's own configuration says how many each model has.
        shape_of: From a model's path to the directory of its ``config.json``.

    Raises:
        UserError: A method that cannot be planned.
    """
    _refuse(config)
    if isinstance(config, RLConfig):
        return _of_rl(config, shape_of)
    return _of_offline(config, world, shape_of)


def _refuse(config: RLConfig | OfflineConfig) -> None:
    """What would need memory that is not counted."""
    wanted = {"lora": "rank", "ema": "decay", "ptx": "coef"}
    for section, key in wanted.items():
        part = getattr(config, section, None)
        if part is not None and (getattr(part, key) or (section == "lora" and part.is_on)):
            raise UserError(
                f"a run with {section} cannot be planned yet",
                where=f"{section}.{key}",
                fix=f"plan it without {section}, and leave room for it",
            )


def _of_rl(config: RLConfig, shape_of: ShapeOf) -> list[Role]:
    settings = registry.filled(config.algorithm)
    algorithm = registry.find(settings.name, settings.file)
    rollout, tokens = config.rollout, config.train.micro_batch_tokens
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    length = config.data.max_prompt_tokens + rollout.max_new_tokens
    whole = Work(samples, length)
    steps = settings.epochs * settings.updates_per_rollout
    step = replace(whole, sequences=samples // settings.updates_per_rollout, times=steps)

    fields = ["rollout_logprobs", "advantages", "loss_weight"]
    fields += ["reference_logprobs"] if settings.kl_coef else []
    fields += ["old_logprobs"] if needs_old_logprobs(settings) else []
    actor = Role(
        name="actor",
        ranks="actor",
        spec=ModelSpec.read(shape_of(config.model.path)),
        config=config.model,
        topology=Topology.of(config.model.parallel, config.cluster.actor_ranks),
        micro_batch_tokens=tokens,
        optimizer=config.optimizer,
        loss=PolicyLoss(
            algorithm,
            settings,
            temperature=rollout.temperature,
            max_tokens=rollout.max_new_tokens,
            sequence_sums=sequence_sums,
        ),
        work={TRAIN: replace(step, fields=tuple(fields))},
    )
    if needs_old_logprobs(settings):
        actor.work[SCORE] = whole
    roles = [actor]
    if settings.kl_coef:
        reference = _frozen(actor, "reference", whole)
        if config.cluster.reference_ranks is not None:  # on ranks of its own
            model = replace(config.model, recompute="none", parallel=config.reference.parallel)
            topology = Topology.of(model.parallel, config.cluster.reference_ranks)
            reference = replace(reference, ranks="reference", config=model, topology=topology)
        roles.append(reference)
    if algorithm.needs_critic:
        roles.append(_critic(config, settings, whole, step, shape_of))
    for name, path in models_by_name(config.reward.models).items():
        model = replace(config.model, path=path, recompute="none", parallel=config.reward.parallel)
        roles.append(
            Role(
                name=reward_role(name),
                ranks=reward_role(name),
                spec=ModelSpec.read_scalar(shape_of(path)),
                config=model,
                topology=Topology.of(model.parallel, config.cluster.reward_ranks),
                micro_batch_tokens=tokens,
                work={SCORE: whole},
            )
        )
    return roles


def _critic(config: RLConfig, settings: Any, whole: Work, step: Work, shape_of: ShapeOf) -> Role:
    critic = config.critic
    path = critic.path or config.model.path
    model = replace(config.model, path=path, recompute=critic.recompute, parallel=critic.parallel)
    fields = ("old_values", "returns", "loss_weight")
    return Role(
        name="critic",
        ranks="critic",
        spec=ModelSpec.read_scalar(shape_of(path)),
        config=model,
        topology=Topology.of(
            model.parallel, config.cluster.critic_ranks or config.cluster.actor_ranks
        ),
        micro_batch_tokens=config.train.micro_batch_tokens,
        optimizer=critic.optimizer,
        loss=ValueLoss(settings, config.rollout.max_new_tokens),
        work={SCORE: whole, TRAIN: replace(step, fields=fields)},
    )


def _frozen(role: Role, name: str, work: Work) -> Role:
    """The same model on the same ranks, not trained."""
    plain = replace(work, fields=(), values=(), times=1)
    return replace(role, name=name, optimizer=None, loss=None, work={SCORE: plain})


def _of_offline(config: OfflineConfig, world: int, shape_of: ShapeOf) -> list[Role]:
    loss, fields, values = _offline_loss(config)
    in_a_row = config.data.sequences_per_row
    work = Work(
        config.train.batch_size * in_a_row, config.data.max_tokens, fields, values, in_a_row
    )
    is_scalar = isinstance(config, schema.RMConfig | schema.PRMConfig)
    directory = shape_of(config.model.path)
    model = Role(
        name="model",
        ranks="model",
        spec=ModelSpec.read_scalar(directory) if is_scalar else ModelSpec.read(directory),
        config=config.model,
        topology=Topology.of(config.model.parallel, world),
        micro_batch_tokens=config.train.micro_batch_tokens,
        optimizer=config.optimizer,
        loss=loss,
        work={TRAIN: work},
    )
    online = isinstance(config, schema.KTOConfig) or (
        isinstance(config, schema.DPOConfig) and config.loss.reference == "online"
    )
    return [model, _frozen(model, "reference", work)] if online else [model]


def _offline_loss(config: Any) -> tuple[TokenLoss, tuple[str, ...], tuple[str, ...]]:
    """The loss, the fields and the numbers that it reads."""
    reference = ("reference_logprobs",)
    makers: dict[type, Callable[[], tuple]] = {
        schema.SFTConfig: lambda: (NegativeLogLikelihood(), (), ()),
        schema.RMConfig: lambda: (
            PairwiseRewardLoss(sequence_sums, config.loss.center_coef),
            (),
            ("margin",) if config.data.margin_key else (),
        ),
        schema.PRMConfig: lambda: (StepRewardLoss(), ("labels",), ()),
        schema.DPOConfig: lambda: (
            PreferenceLoss(config.loss, sequence_sums),
            () if config.loss.reference == "none" else reference,
            (),
        ),
        schema.KTOConfig: lambda: (
            UnpairedLoss(config.loss, sequence_sums),
            reference,
            ("desirable", "kl"),
        ),
    }
    maker = makers.get(type(config))
    if maker is None:
        raise UserError(
            f"a run of {type(config).__name__.removesuffix('Config')} cannot be planned yet",
            fix="plan an sft run of the student; its teacher needs room beside it",
        )
    return maker()
