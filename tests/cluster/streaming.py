"""Ray actors in place of the trainer's ranks: they hold weights and stream them, without Megatron."""

import os
import signal
from pathlib import Path

import torch

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.sync.sender import Sender
from tests.models.tiny import read_tensors, stand_ins

CPU = torch.device("cpu")


class StreamingWorker:
    """One rank of `WorkerGroup`: what a stream needs of `ActorWorker`."""

    def __init__(self, config, rank, world, threads):
        torch.set_num_threads(1)
        self.config, self.rank = config, rank
        self.topology = Topology.of(config.model.parallel, world)
        self.spec = ModelSpec.read(config.model.path)
        self.chunks = stand_ins(self.spec, self.topology, rank)
        self.sender = Sender(self.spec, self.chunks, rank)
        self.store = None
        self.fault = None

    def ready(self):
        return os.getpid()

    def serve_ranks(self, host):
        return 0

    def start(self, host, port):
        self.set_weights(0)

    def set_weights(self, seed):
        """The model's, every element a little different with every seed."""
        tensors = weights_of(Path(self.config.model.path), seed)
        live = [dict(chunk.named_parameters()) for chunk in self.chunks]
        for parameter in parameters_of(self.spec, self.topology, self.rank):
            for piece in parameter.pieces:
                values = tensors[parameter.sources[piece.source]][piece.hf.slices]
                live[parameter.chunk][parameter.name][piece.local.slices] = values

    def serve_stream(self, host):
        if self.store is None:
            self.store = serve_store(host, self.config.cluster.stream_timeout_s)
        return self.store.port

    def open_stream(self, infos):
        for info in infos:
            self.sender.connect(info, CPU, self.store)

    def send_signal_after(self, number, pid, messages):
        """Once, after some messages of the next update, send a signal to an engine."""
        self.fault = (number, pid, messages)

    def stream(self, engines):
        if self.fault is not None:
            number, pid, messages = self.fault
            self.fault = None
            self.sender = _Faulty(self.sender, lambda: os.kill(pid, number), messages)
        return self.sender.send(engines)

    def stream_fingerprints(self, engines):
        return self.sender.fingerprints(engines)


class _Faulty:
    """A sender that does something in the middle of its first update."""

    def __init__(self, sender, act, messages):
        self._sender, self._act, self._left = sender, act, messages
        self.connect, self.fingerprints = sender.connect, sender.fingerprints

    def send(self, engines):
        read = self._sender.read

        def reading(move):
            self._left -= 1
            if self._left == 0:
                self._act()
            return read(move)

        self._sender.read = reading
        try:
            return self._sender.send(engines)
        finally:
            self._sender.read = read


def weights_of(path, seed):
    tensors = read_tensors(path)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * seed * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
    }


STOP, KILL = signal.SIGSTOP, signal.SIGKILL
