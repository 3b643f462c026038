"""What the trainer's ranks run in the tests of the stream."""

from pathlib import Path

import torch

from megarlhf.models.weights.export import export_huggingface
from megarlhf.sync.link import Link
from megarlhf.sync.sender import Sender
from tests.engine import jobs


def stream_train_stream(rank, world, path, parallel, infos, directory):
    """Stream to every engine, train a step, stream again; returns the bytes sent each time.

    What was streamed last is also exported to the directory.
    """
    engine = jobs.build(rank, world, path, parallel)
    links = [Link(info, rank, engine.device) for info in infos]
    sender = Sender(engine.spec, engine.chunks, rank, infos[0])
    sent = [sender.send(links)]
    jobs.train(engine, jobs.make_sequences(engine.spec.vocab_size, [12, 9, 30, 5]), 1)
    sent.append(sender.send(links))
    export_huggingface(
        engine.spec, engine.topology, rank, engine.chunks, Path(directory), torch.float32
    )
    return sent
