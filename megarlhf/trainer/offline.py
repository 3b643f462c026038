"""Supervised training under torchrun: the loop, run by every rank."""

from typing import Any

from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config import checks
from megarlhf.config.schema import SFTConfig
from megarlhf.data.supervised import SequenceStream, load_supervised
from megarlhf.parallel.launched import LaunchedRank
from megarlhf.parallel.topology import Topology
from megarlhf.trainer.offline_run import OfflineRun
from megarlhf.trainer.rl_inputs import check_vocabulary, load_tokenizer, read_language_model
from megarlhf.trainer.stopping import StopRequest


def train(config: SFTConfig) -> dict[str, Any]:
    """Fine-tune a Hugging Face checkpoint on input/output rows; returns the run's summary."""
    launched = LaunchedRank.from_environment()
    checks.check_sft(config, launched.world)
    spec = read_language_model(config.model.path)
    topology = Topology.of(config.model.parallel, launched.world)
    tokenizer = load_tokenizer(config.model.path)
    rows = load_supervised(config.data, tokenizer)
    check_vocabulary([[rows.highest_token]], tokenizer, spec)
    stream = SequenceStream(rows, seed=config.train.seed, shuffle=config.data.shuffle)
    total = config.train.steps or stream.steps_for(config.train.epochs, config.train.batch_size)
    loss = NegativeLogLikelihood()
    with (
        launched,
        StopRequest() as stop,
        OfflineRun(config, spec, topology, stream, total, launched) as run,
    ):
        run.begin()  # or go on from the newest checkpoint
        while run.step < total and not launched.any(bool(stop)):
            run.train_step(stream.next_batch(config.train.batch_size), loss)
        return run.finish(interrupted=run.step < total)
