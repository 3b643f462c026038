"""What the trainer's ranks and the receivers run in the tests of the stream."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.export import export_huggingface
from megarlhf.sync.engine_layout import engine_parameters
from megarlhf.sync.landing import Landing
from megarlhf.sync.sender import Sender
from megarlhf.sync.shared_memory import SharedMemory
from megarlhf.sync.transports import TRANSPORTS, Transport, open_inlet
from tests.engine import jobs

UPDATES = 2
_live: list = []  # the inlet of the last stream: an engine's link lasts as long as the engine
CPU = torch.device("cpu")


class StagedMemory(SharedMemory):
    """Live parameters cannot be shared: as on a GPU."""

    in_place = False


TRANSPORTS["staged_memory"] = Transport("cpu", StagedMemory, "cpu", any_node=False)


def stream_train_stream(rank, world, path, parallel, infos, directory):
    """Stream to every engine, train a step, stream again; returns the bytes sent each time.

    What was streamed last is also exported to the directory.
    """
    engine = jobs.build(rank, world, path, parallel)
    sender = Sender(engine.spec, engine.chunks, rank)
    for info in infos:
        sender.connect(info, engine.device)
    numbers = [info.number for info in infos]
    sent = [sender.send(numbers)]
    jobs.train(engine, jobs.make_sequences(engine.spec.vocab_size, [12, 9, 30, 5]), 1)
    engine.settle()
    sent.append(sender.send(numbers))
    export_huggingface(
        engine.spec, engine.topology, rank, engine.chunks, Path(directory), torch.float32
    )
    return sent


def engine_model(layout, dtype):
    """Modules with an engine's parameters, unknown ones; those of attention are kept packed."""
    model = nn.Module()
    for parameter in layout:
        *path, name = parameter.name.split(".")
        module = model
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        packed = "qkv_proj" in path
        shape = (0,) if packed else parameter.shape
        value = torch.full(shape, float("nan"), dtype=dtype)  # what nobody sends shows
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        if packed:
            module.cpu_linear, module.quant_method = None, Packer()
    return model


class Packer:
    """As vLLM's method does: takes the weight away."""

    def process_weights_after_loading(self, module):
        module.packed = module.weight.detach().clone()
        module.weight = nn.Parameter(torch.empty(0), requires_grad=False)


def receive(info, worker, file):
    """What a worker of an engine does, without vLLM; writes each update's parameters to a file."""
    layout = engine_parameters(ModelSpec.read(info.model_path), info.engine_topology, worker)
    plan = info.plan(ModelSpec.read(info.model_path))
    model = engine_model(layout, info.wire_dtype)
    landing = Landing(model, layout)
    inlet = open_inlet(info, plan, worker, CPU, landing)
    _live[:] = [inlet]
    for update in range(UPDATES):
        inlet.begin()
        for bucket in plan:
            landing.finish(inlet.receive(bucket, bucket.messages[info.number, worker]))
            inlet.done(bucket)
        values = {}
        for parameter in layout:
            module = model.get_submodule(parameter.module)
            is_packed = parameter.name.endswith("qkv_proj.weight")
            values[parameter.name] = module.packed if is_packed else landing.live(parameter.name)
        save_file({name: value.data.clone() for name, value in values.items()}, f"{file}.{update}")
