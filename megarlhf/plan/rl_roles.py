"""The models of an RL run."""

from dataclasses import replace
from typing import Any

from megarlhf.algo import registry
from megarlhf.algo.policy_loss import PolicyLoss
from megarlhf.algo.pretraining_mix import PTX, ROW, PretrainingMix
from megarlhf.algo.value_loss import ValueLoss
from megarlhf.cluster.placement import reward_role
from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import RLConfig
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
    rollout, tokens = config.rollout, config.train.micro_batch_tokens
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    length = config.data.max_prompt_tokens + rollout.max_new_tokens
    whole = Work(
        samples, length, trained=rollout.max_new_tokens, samples=rollout.samples_per_prompt
    )
    steps = settings.epochs * settings.updates_per_rollout
    # Several epochs mix the rollout: of a prompt's samples a step then has its share.
    apart = settings.updates_per_rollout if settings.epochs > 1 else 1
    step = replace(
        whole,
        sequences=samples // settings.updates_per_rollout,
        times=steps,
        samples=max(1, rollout.samples_per_prompt // apart),
    )

    fields = ["rollout_logprobs", "advantages", "loss_weight"]
    fields += ["reference_logprobs"] if settings.kl_coef else []
    fields += ["old_logprobs"] if needs_old_logprobs(settings) else []
    loss, step_of_actor = _with_pretraining(
        config,
        PolicyLoss(
            algorithm,
            settings,
            temperature=rollout.temperature,
            max_tokens=rollout.max_new_tokens,
            sequence_sums=sequence_sums,
        ),
        replace(step, fields=tuple(fields)),
    )
    topology = Topology.of(config.model.parallel, config.cluster.actor_ranks)
    actor = Role(
        name="actor",
        ranks="actor",
        spec=ModelSpec.read(shape_of(config.model.path)),
        config=config.model,
        topology=topology,
        micro_batch_tokens=tokens,
        optimizer=config.optimizer,
        loss=loss,
        work={TRAIN: step_of_actor},
        lora=config.lora,
        averaging=config.ema.decay,
        share=shares_prompts(config, config.model, topology),
    )
    if needs_old_logprobs(settings):
        actor.work[SCORE] = _as_long(whole, step_of_actor.tokens)
    roles = [actor]
    if settings.kl_coef:
        reference = before_training(actor, "reference", _as_long(whole, step_of_actor.tokens))
        if config.cluster.reference_ranks is not None:  # on ranks of its own
            model = replace(config.model, recompute="none", parallel=config.reference.parallel)
            topology = Topology.of(model.parallel, config.cluster.reference_ranks)
            share = shares_prompts(config, model, topology)
            reference = replace(
                reference, ranks="reference", config=model, topology=topology, share=share
            )
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
                work={
                    SCORE: replace(whole, trained=0)
                },  # whole sequences, whose prompt nobody tells
            )
        )
    return roles


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


def _critic(config: RLConfig, settings: Any, whole: Work, step: Work, shape_of: ShapeOf) -> Role:
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
