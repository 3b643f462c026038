"""The models of an RL run."""

from dataclasses import replace

from megarlhf.algo import registry
from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.pretraining_mix import PTX, ROW, PretrainingMix
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.cluster.placement import reward_role
from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import AlgorithmConfig, RLConfig
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.shares import shares_prompts
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.context import sequence_sums
from megarlhf.parallel.topology import Topology
from megarlhf.plan.roles import SCORE, TRAIN, Role, ShapeOf, Work, before_training
from megarlhf.trainer.experience import needs_old_logprobs


def roles_of_rl(config: RLConfig, shape_of: ShapeOf) -> list[Role]:
    """Actor, reference, critic and reward models; see `roles_of`."""
    settings = registry.filled(config.algorithm)
    algorithm = registry.find(settings.name, settings.file)
    whole, step = _works(config, settings)
    actor = _actor(config, settings, algorithm, whole, step, shape_of)
    roles = [actor]
    if settings.kl_coef:
        roles.append(_reference(config, actor, whole))
    if algorithm.needs_critic:
        roles.append(_critic(config, settings, whole, step, shape_of))
    for name, path in models_by_name(config.reward.models).items():
        roles.append(_reward_model(config, name, path, whole, shape_of))
    return roles


def _works(config: RLConfig, settings: AlgorithmConfig) -> tuple[Work, Work]:
    """A rollout passed through a model once, and an optimizer step on a part of it."""
    rollout = config.rollout
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    length = config.data.max_prompt_tokens + rollout.max_new_tokens
    whole = Work(
        samples, length, trained=rollout.max_new_tokens, samples=rollout.samples_per_prompt
    )
    # Several epochs mix the rollout: of a prompt's samples a step then has its share.
    apart = settings.updates_per_rollout if settings.epochs > 1 else 1
    step = replace(
        whole,
        sequences=samples // settings.updates_per_rollout,
        times=settings.epochs * settings.updates_per_rollout,
        samples=max(1, rollout.samples_per_prompt // apart),
    )
    return whole, step


def _actor(
    config: RLConfig,
    settings: AlgorithmConfig,
    algorithm: registry.Algorithm,
    whole: Work,
    step: Work,
    shape_of: ShapeOf,
) -> Role:
    fields = ["rollout_logprobs", "advantages", "loss_weight"]
    fields += ["reference_logprobs"] if settings.kl_coef else []
    fields += ["old_logprobs"] if needs_old_logprobs(settings) else []
    loss = PolicyLoss(
        algorithm,
        settings,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_new_tokens,
        sequence_sums=sequence_sums,
    )
    mixed, train = _with_pretraining(config, loss, replace(step, fields=tuple(fields)))
    work = {TRAIN: train}
    if needs_old_logprobs(settings):
        work[SCORE] = _as_long(whole, train.tokens)
    topology = Topology.of(config.model.parallel, config.cluster.actor_ranks)
    return Role(
        name="actor",
        ranks="actor",
        spec=ModelSpec.read(shape_of(config.model.path)),
        config=config.model,
        topology=topology,
        micro_batch_tokens=config.train.micro_batch_tokens,
        optimizer=config.optimizer,
        loss=mixed,
        work=work,
        lora=config.lora,
        averaging=config.ema.decay,
        share=shares_prompts(config, config.model, topology),
    )


def _reference(config: RLConfig, actor: Role, whole: Work) -> Role:
    """On the actor's ranks or on its own."""
    reference = before_training(actor, "reference", _as_long(whole, actor.work[TRAIN].tokens))
    if config.cluster.reference_ranks is None:
        return reference
    model = replace(config.model, recompute="none", parallel=config.reference.parallel)
    topology = Topology.of(model.parallel, config.cluster.reference_ranks)
    share = shares_prompts(config, model, topology)
    return replace(reference, ranks="reference", config=model, topology=topology, share=share)


def _with_pretraining(config: RLConfig, loss: PolicyLoss, step: Work) -> tuple[TokenLoss, Work]:
    """The actor's step with the rows of ``ptx``, counted as if all sequences had one length."""
    if not config.ptx.coef:
        return loss, step
    tokens = max(step.tokens, config.ptx.data.max_tokens)
    rows = -(-config.ptx.batch_size * config.ptx.data.max_tokens // tokens)
    step = _as_long(step, tokens)
    fields = (*step.fields, PTX, ROW)
    mixed = replace(step, sequences=step.sequences + rows, fields=fields)
    return PretrainingMix(loss, config.ptx.coef, weight=config.ptx.coef), mixed


def _as_long(work: Work, tokens: int) -> Work:
    """As many tokens in sequences of another length, of which any may be trained on."""
    if tokens == work.tokens:
        return work
    sequences = -(-work.sequences * work.tokens // tokens)
    return replace(work, tokens=tokens, sequences=sequences, trained=None, samples=1)


def _critic(
    config: RLConfig, settings: AlgorithmConfig, whole: Work, step: Work, shape_of: ShapeOf
) -> Role:
    critic = config.critic
    path = critic.path or config.model.path
    model = replace(config.model, path=path, recompute=critic.recompute, parallel=critic.parallel)
    fields = ("old_values", "returns", "loss_weight")
    topology = Topology.of(
        model.parallel, config.cluster.critic_ranks or config.cluster.actor_ranks
    )
    return Role(
        name="critic",
        ranks="critic",
        spec=ModelSpec.read_scalar(shape_of(path)),
        config=model,
        topology=topology,
        micro_batch_tokens=config.train.micro_batch_tokens,
        optimizer=critic.optimizer,
        loss=ValueLoss(settings, config.rollout.max_new_tokens),
        work={SCORE: whole, TRAIN: replace(step, fields=fields)},
        share=shares_prompts(config, model, topology),
    )


def _reward_model(config: RLConfig, name: str, path: str, whole: Work, shape_of: ShapeOf) -> Role:
    model = replace(config.model, path=path, recompute="none", parallel=config.reward.parallel)
    return Role(
        name=reward_role(name),
        ranks=reward_role(name),
        spec=ModelSpec.read_scalar(shape_of(path)),
        config=model,
        topology=Topology.of(model.parallel, config.cluster.reward_ranks),
        micro_batch_tokens=config.train.micro_batch_tokens,
        work={SCORE: replace(whole, trained=0)},  # whole sequences, whose prompt nobody tells
    )
