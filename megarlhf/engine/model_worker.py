"""What one rank of any model does: meets the others, keeps the files.

Plain classes: each runs in a process that Ray or torchrun keeps.
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megarlhf.config.schema import ModelConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine import checkpoint
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.model_engine import ModelEngine, Part
from megarlhf.engine.result import write_result
from megarlhf.engine.shares import shares_prompts
from megarlhf.models.build import DTYPES
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.groups import join_world, make_groups
from megarlhf.parallel.stores import find_store, serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.startup import building

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection


class ModelWorker(ABC):
    """One rank of a trained model. A subclass says which model, and builds it.

    Args:
        config: The run's configuration.
        rank: This rank.
        world: Number of ranks of this model.
        threads: torch threads on a CPU machine.

    Attributes:
        engine: The trained model, once `start` has built it.
    """

    engine: ModelEngine

    def __init__(self, config: RLConfig, rank: int, world: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.config, self.rank, self.world = config, rank, world
        self.model = self.model_of(config)
        self.topology = Topology.of(self.model.parallel, world)
        self._meeting: dist.TCPStore | None = None

    @staticmethod
    @abstractmethod
    def model_of(config: RLConfig) -> ModelConfig:
        """The model in a run's configuration."""

    @abstractmethod
    def build(self) -> None:
        """Build and load everything, the rank being among the others."""

    def ready(self) -> int:
        """Answers once the process is up, with its id."""
        return os.getpid()

    def serve_ranks(self, host: str) -> int:
        """Serve the store that this model's ranks meet at, on this machine (rank 0 only).

        Returns:
            Its port.
        """
        self._meeting = serve_store(host)
        return self._meeting.port

    def start(self, host: str, port: int) -> None:
        """Join the other ranks, then `build`."""
        store = find_store(host, port) if self._meeting is None else self._meeting
        with building():
            join_world(self.rank, self.world, store, host)
            self.start_with(make_groups(self.topology, self.config.train.seed))

    def start_with(self, groups: "ProcessGroupCollection") -> None:
        """Build on ranks that have joined each other; models of one layout may share its groups."""
        self._groups = groups
        self.build()

    def new_engine(self, spec: ModelSpec, **kwargs: Any) -> ModelEngine:
        """A model of ``spec`` on these ranks; further arguments are `ModelEngine`'s."""
        return ModelEngine(
            spec,
            self.model,
            self.topology,
            self._groups,
            self.rank,
            micro_batch_tokens=self.config.train.micro_batch_tokens,
            share=shares_prompts(self.config, self.model, self.topology),
            **kwargs,
        )

    def train(self, sequences: list[TokenSequence], loss: TokenLoss, lr: float) -> dict[str, float]:
        """See `ModelEngine.train_step`."""
        return self.engine.train_step(sequences, loss, lr=lr)

    def save(self, directory: str) -> None:
        """Write a checkpoint into an existing directory."""
        checkpoint.save(self.engine, Path(directory))

    def load(self, directory: str) -> None:
        """Restore a checkpoint."""
        checkpoint.load(self.engine, Path(directory))

    def export(self, directory: str) -> None:
        """Write what was trained, in its training dtype: see `write_result`."""
        write_result(self.engine, Path(directory), DTYPES[self.model.dtype])

    def offload(self, *parts: Part) -> int:
        """Give back memory: see `ModelEngine.offload`."""
        return self.engine.offload(*parts)

    def reload(self, *parts: Part) -> None:
        """Undo `offload`: see `ModelEngine.reload`."""
        self.engine.reload(*parts)

    def stop(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
