"""What the trainer's ranks and the receivers run in the tests of the stream."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.export import export_huggingface
from megarlhf.sync.link import Link
from megarlhf.sync.plan import plan_stream
from megarlhf.sync.sender import Sender
from tests.engine import jobs

UPDATES = 2


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


def receive(info, worker, file):
    """What a worker of an engine does, without vLLM; writes each update's tensors to a file."""
    spec = ModelSpec.read(info.model_path)
    plan = plan_stream(spec, info.trainer, info.bucket_elements)
    link = Link(info, info.trainer.world + worker, torch.device("cpu"))
    for update in range(UPDATES):
        nan = float("nan")  # what nobody sends shows
        tensors = {
            name: torch.full(shape, nan, dtype=info.wire_dtype)
            for name, shape in spec.tensors.items()
        }
        for bucket in plan:
            for rank, parts in bucket.parts.items():
                message = torch.empty(bucket.elements_from(rank), dtype=info.wire_dtype)
                link.receive(message, rank).wait()
                sizes = [part.piece.hf.numel for part in parts]
                for part, values in zip(parts, message.split(sizes), strict=True):
                    rect = part.piece.hf
                    tensors[part.name][rect.slices] = values.view(rect.shape)
        save_file(tensors, f"{file}.{update}")
