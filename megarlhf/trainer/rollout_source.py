"""Where a run's rollouts come from: made in turn with training, or ahead of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megarlhf.cluster.device_turns import Separate
from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.config.schema import AlgorithmConfig, RLConfig
from megarlhf.trainer.ahead import Ahead
from megarlhf.trainer.rl_inputs import RLInputs
from megarlhf.trainer.rollouts import InTurn, Phase, RolloutMaker
from megarlhf.trainer.samplers import Sampler


def advice_on(algorithm: AlgorithmConfig) -> str | None:
    """A warning where the correction does not correct for samples of older weights; else None."""
    if algorithm.correction == "none":
        return (
            "algorithm.correction=none: tokens sampled from older weights are trained on as if they "
            "were the actor's own"
        )
    if algorithm.correction != "icepop" and algorithm.correction_low > 0:
        return (
            f"algorithm.correction_low={algorithm.correction_low:g}: tokens that the actor would "
            "hardly choose any more keep that weight; 0 is safer where sampling runs ahead"
        )
    return None


@contextmanager
def rollouts_of(
    config: RLConfig,
    inputs: RLInputs,
    sampler: Sampler,
    engines: EngineGroup,
    turns: Separate,
    phase: Phase,
    note: Callable[[str], None],
) -> Iterator[InTurn | Ahead]:
    """Yields the source of rollouts that ``rollout.async_steps`` asks for.

    Args:
        config: The run's configuration.
        inputs: Its prompts and rewards.
        sampler: Makes samples of prompts.
        engines: The engines that the sampler asks (or is).
        turns: Who has the devices.
        phase: Times what the main thread does.
        note: Tells the person at the keyboard.
    """
    maker = RolloutMaker(config, inputs, sampler, turns)
    if config.rollout.async_steps == 0:
        yield InTurn(maker, phase)
        return
    if (advice := advice_on(config.algorithm)) is not None:
        note(advice)

    def give_up() -> None:
        inputs.reward.cancel()
        sampler.cancel()
        engines.end()

    with Ahead(maker.make, config.rollout.async_steps, inputs.total_steps, phase, give_up) as ahead:
        engines.repairs = ahead.on_main_thread
        yield ahead
