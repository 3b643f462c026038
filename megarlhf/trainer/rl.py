"""Reinforcement learning: the loop."""

from dataclasses import replace
from typing import Any

from megarlhf.algo import registry
from megarlhf.cluster.processes import Opener
from megarlhf.config.schema import RLConfig
from megarlhf.trainer.experience import as_sequences
from megarlhf.trainer.rl_inputs import prepare
from megarlhf.trainer.rl_run import RLRun
from megarlhf.trainer.run_directory import RunDirectory
from megarlhf.trainer.stopping import StopRequest


def train(config: RLConfig, processes: Opener) -> dict[str, Any]:
    """From a Hugging Face checkpoint to a better one; returns the run's summary."""
    config = replace(config, algorithm=registry.filled(config.algorithm))  # what was left to it
    inputs = prepare(config)  # everything that can be wrong with the input is found here
    with RunDirectory("rl", config) as directory:
        if summary := directory.finished_summary(inputs.total_steps):
            print(f"{directory.path} is complete; raise train.steps to go on from it")
            return summary
        # Ray, where the run starts it, takes the signals: ours are set after it.
        with RLRun(config, inputs, directory, processes) as run, StopRequest() as stop:
            run.begin()  # or go on from the newest checkpoint
            while run.step < inputs.total_steps and not stop:
                rollout = run.next_rollout()  # sampled, scored, worth training on
                sequences = as_sequences(rollout.groups, run.sequence_multiple)
                with run.phase("predict"):
                    run.add_predictions(sequences)
                run.credit.assign(rollout.groups, sequences)
                with run.phase("train"):
                    metrics = run.update_models(sequences)
                with run.phase("stream"):
                    metrics |= run.update_engines()
                run.finish_step(rollout, metrics)
            return run.finish(interrupted=run.step < inputs.total_steps)
