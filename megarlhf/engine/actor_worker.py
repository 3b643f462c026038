"""What one rank of the actor does: actor, reference, stream."""

from dataclasses import asdict
from typing import Any

from megarlhf.config.schema import ModelConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.model_worker import ModelWorker
from megarlhf.models.build import DTYPES
from megarlhf.models.spec import ModelSpec
from megarlhf.sync.link import Link, StreamInfo, serve_store
from megarlhf.sync.sender import Sender

STREAM_BUCKET_BYTES = 256 * 2**20


class ActorWorker(ModelWorker):
    """One rank of the actor and, where KL is wanted, of the reference; see `ModelWorker`."""

    def __init__(self, config: RLConfig, rank: int, world: int, threads: int) -> None:
        super().__init__(config, rank, world, threads)
        self._links: list[Link] = []
        self._sender: Sender | None = None
        self._store: Any = None

    @staticmethod
    def describe(config: RLConfig) -> ModelConfig:
        """The trained model."""
        return config.model

    def build(self) -> None:
        """Build and load the actor and the reference."""
        spec = ModelSpec.read(self.model.path)
        self.engine = self.new_engine(spec, optimizer=self.config.optimizer)
        wants_reference = self.config.algorithm.kl_coef > 0
        self.reference = self.new_engine(spec) if wants_reference else None

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
        return self.engine.logprobs(sequences, temperature=temperature)

    # -- stream -----------------------------------------------------------------------------------

    def offer_stream(self, host: str) -> list[StreamInfo]:
        """Serve the store that engines meet the ranks at, on this machine's address (rank 0 only).

        Returns:
            For each engine, what both ends of its link agree on.
        """
        timeout = self.config.cluster.stream_timeout_s
        self._store = serve_store(host, timeout)
        dtype = DTYPES[self.config.rollout.dtype or self.config.model.dtype]
        return [
            StreamInfo(
                model_path=str(self.engine.spec.path),
                topology=asdict(self.topology),
                host=host,
                port=self._store.port,
                name=f"engine{engine}",
                engine_ranks=self.config.rollout.tensor_parallel,
                bucket_elements=STREAM_BUCKET_BYTES // dtype.itemsize,
                dtype=str(dtype).split(".")[1],
                timeout_s=timeout,
            )
            for engine in range(self.config.rollout.engines)
        ]

    def open_stream(self, infos: list[StreamInfo]) -> None:
        """Meet every engine."""
        self._links = [Link(info, self.rank, self.engine.device, self._store) for info in infos]
        self._sender = Sender(self.engine.spec, self.engine.chunks, self.rank, infos[0])

    def stream(self) -> int:
        """Send the actor's weights to every engine; returns the bytes this rank sent."""
        assert self._sender is not None
        self.engine.settle()
        return self._sender.send(self._links)
