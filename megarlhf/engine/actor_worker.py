"""What one rank of the trained model does: actor, reference, checkpoints, export, stream.

A plain class: Ray runs one in each process, and so could torchrun.
"""

import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megarlhf.config.schema import RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine import checkpoint
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.build import DTYPES
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.export import export_huggingface
from megarlhf.parallel.groups import join_world, make_groups
from megarlhf.parallel.topology import Topology
from megarlhf.sync.link import StreamInfo, serve_store
from megarlhf.sync.plan import Worker
from megarlhf.sync.prints import Prints
from megarlhf.sync.sender import Sender, Sent


class ActorWorker:
    """One rank.

    Args:
        config: The run's configuration.
        rank: This rank.
        world: Number of ranks.
        threads: torch threads on a CPU machine.
    """

    def __init__(self, config: RLConfig, rank: int, world: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.config, self.rank, self.world = config, rank, world
        self.topology = Topology.of(config.model.parallel, world)
        self._sender: Sender | None = None
        self._store: Any = None

    def free_port(self, host: str) -> int:
        """A free port of this machine's address ``host``."""
        with socket.socket() as probe:
            probe.bind((host, 0))
            return probe.getsockname()[1]

    def start(self, host: str, port: int) -> None:
        """Join the other ranks, build and load the actor and, where KL is wanted, the reference."""
        join_world(self.rank, self.world, host, port)
        groups = make_groups(self.topology, self.config.train.seed)
        self.spec = ModelSpec.read(self.config.model.path)

        def build(**kwargs: Any) -> ModelEngine:
            return ModelEngine(
                self.spec,
                self.config.model,
                self.topology,
                groups,
                self.rank,
                micro_batch_tokens=self.config.train.micro_batch_tokens,
                **kwargs,
            )

        self.actor = build(optimizer=self.config.optimizer)
        self.reference = build() if self.config.algorithm.kl_coef > 0 else None

    def reference_logprobs(
        self, sequences: list[TokenSequence], temperature: float
    ) -> dict[int, list[float]]:
        """See `ModelEngine.logprobs`; of the reference model."""
        assert self.reference is not None
        return self.reference.logprobs(sequences, temperature=temperature)

    def logprobs(
        self, sequences: list[TokenSequence], temperature: float
    ) -> dict[int, list[float]]:
        """See `ModelEngine.logprobs`; of the actor."""
        return self.actor.logprobs(sequences, temperature=temperature)

    def train(self, sequences: list[TokenSequence], loss: TokenLoss, lr: float) -> dict[str, float]:
        """See `ModelEngine.train_step`."""
        return self.actor.train_step(sequences, loss, lr=lr)

    # -- stream -----------------------------------------------------------------------------------

    def serve_stream(self, host: str) -> int:
        """Serve the store that engines meet the ranks at, on this machine (rank 0 only).

        Returns:
            Its port.
        """
        if self._store is None:
            self._store = serve_store(host, self.config.cluster.stream_timeout_s)
        return self._store.port

    def open_stream(self, infos: list[StreamInfo]) -> None:
        """Meet engines; one that was met before is another one now."""
        if self._sender is None:
            self._sender = Sender(self.spec, self.actor.chunks, self.rank)
        for info in infos:
            self._sender.connect(info, self.actor.device, self._store)

    def stream(self, engines: list[int]) -> dict[int, Sent]:
        """Send the actor's weights to some engines: see `Sender.send`."""
        assert self._sender is not None
        self.actor.settle()
        return self._sender.send(engines)

    def stream_prints(self, engines: list[int]) -> dict[Worker, Prints]:
        """Fingerprints of what `stream` sends from this rank."""
        assert self._sender is not None
        self.actor.settle()
        return self._sender.prints(engines)

    def offload(self, *parts: str) -> int:
        """Give back memory: see `ModelEngine.offload`; the reference's weights go with the actor's."""
        if "weights" in parts and self.reference is not None:
            self.reference.offload("weights")
        return self.actor.offload(*parts)

    def reload(self) -> None:
        """Undo every `offload`."""
        self.actor.reload()
        if self.reference is not None:
            self.reference.reload()

    # -- files ------------------------------------------------------------------------------------

    def save(self, directory: str) -> None:
        """Write a checkpoint into an existing directory."""
        checkpoint.save(self.actor, Path(directory))

    def load(self, directory: str) -> None:
        """Restore a checkpoint."""
        checkpoint.load(self.actor, Path(directory))

    def export(self, directory: str) -> None:
        """Write the actor as a Hugging Face checkpoint, in its training dtype."""
        export_huggingface(
            self.spec,
            self.topology,
            self.rank,
            self.actor.chunks,
            Path(directory),
            DTYPES[self.config.model.dtype],
        )

    def stop(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
