"""Rules that hold between settings, the model's ``config.json`` and the files on disk.

They run before any process starts or any model is built, and need only the standard library. Each
family of rules is a function; the first rule that is broken raises a `UserError` that
names the key and what to change. Whether a model's architecture is supported is for `models` to
say, and whether an algorithm exists and what it asks of the settings for `algo`.
"""

from megarlhf.config.agent_checks import check_scoring
from megarlhf.config.async_checks import check_async
from megarlhf.config.batch_checks import check_sequence_length, check_shares
from megarlhf.config.data_checks import check_data
from megarlhf.config.layout_checks import (
    check_engine_experts,
    check_engine_heads,
    check_parallel,
)
from megarlhf.config.learning_checks import check_best_offline, check_learning
from megarlhf.config.lora_checks import check_lora, check_lora_in_rl
from megarlhf.config.model_files import check_engine_weights, read_model_config
from megarlhf.config.numbers import any_of, nearest_divisors
from megarlhf.config.offline_checks import check_evaluation, check_loss
from megarlhf.config.output_checks import check_output
from megarlhf.config.placement_checks import check_placement
from megarlhf.config.ranges import check_ranges, check_required
from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import OfflineConfig, ParallelConfig, RLConfig
from megarlhf.errors import UserError


def check_rl(config: RLConfig) -> None:
    """Checks everything about ``megarlhf rl`` that can be known before it starts.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    check_required(config)
    check_output(config.output)
    check_ranges(config)
    check_data(config.data)
    check_lora_in_rl(config)
    check_scoring(config)
    check_rollout_batch(config)
    check_async(config)
    model = read_model_config(config.model.path)
    check_engine_weights(config.model.path)
    ranks = config.cluster.actor_ranks
    check_parallel(config.model.parallel, model, ranks, "cluster.actor_ranks")
    check_engine_heads(config, model)
    check_engine_experts(config, model)
    check_sequence_length(rollout_lengths(config), model)
    check_rollout_shares(config, config.model.parallel, ranks)
    check_placement(config)
    if config.cluster.reference_ranks is not None:
        ranks, parallel = config.cluster.reference_ranks, config.reference.parallel
        check_parallel(parallel, model, ranks, "cluster.reference_ranks", "reference.parallel")
        check_rollout_shares(config, parallel, ranks)
    check_learning(config, model)


def check_critic(config: RLConfig) -> None:
    """Checks the critic of ``megarlhf rl``, for an algorithm that has one.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    critic = config.critic
    model = read_model_config(critic.path or config.model.path, "critic.path")
    ranks = config.cluster.critic_ranks or config.cluster.actor_ranks
    check_parallel(critic.parallel, model, ranks, "cluster.critic_ranks", "critic.parallel")
    check_sequence_length(rollout_lengths(config), model, "critic")
    check_rollout_shares(config, critic.parallel, ranks)


def check_reward_models(config: RLConfig) -> None:
    """Checks the reward models of ``megarlhf rl`` that run on ranks of their own.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    parallel, ranks = config.reward.parallel, config.cluster.reward_ranks
    for path in models_by_name(config.reward.models).values():
        model = read_model_config(path, "reward.models")
        check_parallel(parallel, model, ranks, "cluster.reward_ranks", "reward.parallel")
        check_sequence_length(rollout_lengths(config), model, "reward model")


def check_served_model(config: RLConfig) -> None:
    """Checks the settings of ``megarlhf serve-rm --model``.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    check_ranges(config)
    for path in models_by_name(config.reward.models).values():
        model = read_model_config(path, "--model")
        ranks = config.cluster.reward_ranks
        check_parallel(
            config.reward.parallel, model, ranks, "cluster.reward_ranks", "reward.parallel"
        )


def rollout_lengths(config: RLConfig) -> dict[str, int]:
    """The settings that together say how long a sequence gets, tokens."""
    return {
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
        "rollout.max_new_tokens": config.rollout.max_new_tokens,
    }


def check_offline(config: OfflineConfig, world_size: int) -> None:
    """Checks everything about a command under torchrun that can be known before it starts.

    Args:
        config: The run's configuration.
        world_size: The number of ranks that torchrun started.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    check_required(config)
    check_output(config.output)
    check_ranges(config)
    check_data(config.data)
    check_lora(config.lora, config.model)
    check_evaluation(config)
    check_best_offline(config)
    check_loss(config)
    model = read_model_config(config.model.path)
    check_parallel(config.model.parallel, model, world_size, "torchrun's number of processes")
    check_sequence_length({"data.max_tokens": config.data.max_tokens}, model)
    parallel, in_a_row = config.model.parallel, config.data.sequences_per_row
    padding = 2 * parallel.context * (parallel.tensor if parallel.sequence else 1)
    check_shares(
        config.train.batch_size,
        "train.batch_size",
        in_a_row * (config.data.max_tokens + padding) - padding,  # of a row, which is dealt whole
        parallel,
        world_size,
        config.train.micro_batch_tokens,
    )


def check_rollout_batch(config: RLConfig) -> None:
    """A rollout's samples cut into equal updates."""
    per_prompt, updates = config.rollout.samples_per_prompt, config.algorithm.updates_per_rollout
    samples = config.rollout.prompts_per_step * per_prompt
    if samples % updates:
        raise UserError(
            f"must divide the {samples} samples of a rollout (rollout.prompts_per_step * "
            f"rollout.samples_per_prompt), got {updates}",
            where="algorithm.updates_per_rollout",
            fix=f"use {any_of(nearest_divisors(samples, updates))}, or change the other two",
        )


def check_rollout_shares(config: RLConfig, parallel: ParallelConfig, ranks: int) -> None:
    """An update's samples can be dealt to a model's data-parallel ranks."""
    rollout, updates = config.rollout, config.algorithm.updates_per_rollout
    check_shares(
        rollout.prompts_per_step * rollout.samples_per_prompt // updates,
        "rollout.prompts_per_step * samples_per_prompt / algorithm.updates_per_rollout",
        config.data.max_prompt_tokens + rollout.max_new_tokens,
        parallel,
        ranks,
        config.train.micro_batch_tokens,
    )
