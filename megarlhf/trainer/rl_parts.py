"""The parts of an RL run: started together, ended together."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megarlhf.cluster.device_turns import Separate, by_turns_on_gpus, device_turns
from megarlhf.cluster.engine_group import EngineGroup
from megarlhf.cluster.model_groups import ModelGroups
from megarlhf.cluster.placement import placement_of
from megarlhf.cluster.processes import Opener
from megarlhf.cluster.stream_links import check_transport
from megarlhf.config.schema import RLConfig
from megarlhf.report.progress import Progress
from megarlhf.startup import importing
from megarlhf.trainer.ahead import Ahead
from megarlhf.trainer.engine_settings import engine_settings
from megarlhf.trainer.reward_models import start_reward_models
from megarlhf.trainer.rl_inputs import RLInputs
from megarlhf.trainer.rollout_source import rollouts_of
from megarlhf.trainer.rollouts import InTurn
from megarlhf.trainer.samplers import Sampler, samplers_of
from megarlhf.trainer.trained_models import TrainedModels, kinds_of_models


@dataclass(frozen=True)
class RLParts:
    """What runs.

    Attributes:
        models: The trained ones, loaded.
        engines: Linked to the actor; their weights are those that they were built with.
        turns: Who has the devices.
        rollouts: What to train on; not begun.
        evaluator: Samples the responses that are only judged.
    """

    models: TrainedModels
    engines: EngineGroup
    turns: Separate
    rollouts: InTurn | Ahead
    evaluator: Sampler


@contextmanager
def rl_parts(
    config: RLConfig,
    inputs: RLInputs,
    processes: Opener,
    checkpoint: Path | None,
    progress: Progress,
) -> Iterator[RLParts]:
    """Start everything.

    Args:
        config: The configuration.
        inputs: What was read before.
        processes: Who keeps the processes.
        checkpoint: To load the models from; None: from what they are initialised with.
        progress: Is told how it goes.
    """
    algorithm, note = inputs.algorithm, progress.note
    with ExitStack() as stack:
        with progress.phase("start", setup=True), importing():
            stack.enter_context(inputs.reward)
            placement = placement_of(config, kinds_of_models(config, algorithm))
            opened = stack.enter_context(processes(placement))
            on_gpu = opened.on_gpu
            check_transport(config, inputs.spec, on_gpu=on_gpu)
            groups = ModelGroups(config, opened)
            models = TrainedModels.placed(
                config, algorithm, inputs.total_steps, groups, inputs.ptx, note
            )
            make_engines = partial(EngineGroup, config, engine_settings(config), opened, note)
            alone = by_turns_on_gpus(config, on_gpu=on_gpu)
            engines = None if alone else make_engines()  # which start while the models do
            models.start(checkpoint)
            start_reward_models(config, inputs.reward.scorers, groups)
            if engines is None:
                models.actor.make_room()
                engines = make_engines()
            engines.start()
            turns = device_turns(config, models.actor, engines, note, on_gpu=on_gpu)
            turns.to_trainer()  # whoever shares memory with engines is asked to meet them
            engines.connect(models.actor)
            sampler, evaluator = stack.enter_context(
                samplers_of(config, inputs.tokenizer, inputs.spec.vocab_size, engines)
            )
            rollouts = stack.enter_context(
                rollouts_of(config, inputs, sampler, engines, turns, progress.phase, note)
            )
        yield RLParts(models, engines, turns, rollouts, evaluator)
