"""Every offline method under torchrun: the loop, run by every rank."""

from typing import Any

from megarlhf.config.schema import OfflineConfig
from megarlhf.parallel.launched import LaunchedRank
from megarlhf.trainer.offline_inputs import prepare
from megarlhf.trainer.offline_run import OfflineRun
from megarlhf.trainer.stopping import StopRequest


def train(config: OfflineConfig) -> dict[str, Any]:
    """From a Hugging Face checkpoint and rows to another checkpoint; returns the run's summary."""
    launched = LaunchedRank.from_environment()
    inputs = prepare(config, launched.world)  # everything wrong with the input is found here
    with launched, StopRequest() as stop, OfflineRun(config, inputs, launched) as run:
        run.begin()  # or go on from the newest checkpoint
        while run.step < run.total_steps and not launched.any(bool(stop)):
            run.train_step(inputs.stream.next_batch(config.train.batch_size))
        return run.finish(interrupted=run.step < run.total_steps)
