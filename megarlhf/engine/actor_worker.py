"""What one rank of the actor does: actor, reference, stream."""

from pathlib import Path
from typing import Any

from megarlhf.config.schema import ModelConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.averaged_weights import AveragedWeights
from megarlhf.engine.before_training import before_training
from megarlhf.engine.loss import TokenLoss
from megarlhf.engine.model_engine import ModelEngine, Part
from megarlhf.engine.model_worker import ModelWorker
from megarlhf.models.lora.wanted import adapters_of
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.stores import serve_store
from megarlhf.sync.adapter_sender import AdapterSender
from megarlhf.sync.fingerprints import Fingerprints
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.plan import Worker
from megarlhf.sync.sender import Sender, Sent
from megarlhf.sync.transports import TRANSPORTS
from megarlhf.sync.vllm_transport import M2NSender


class ActorWorker(ModelWorker):
    """One rank of the actor and, where KL is wanted, of the reference; see `ModelWorker`."""

    def __init__(self, config: RLConfig, rank: int, world: int, threads: int) -> None:
        super().__init__(config, rank, world, threads)
        self._sender: Sender | AdapterSender | M2NSender | None = None
        self._store: Any = None

    @staticmethod
    def model_of(config: RLConfig) -> ModelConfig:
        """The trained model."""
        return config.model

    def build(self) -> None:
        """Build and load the actor and the reference."""
        spec = ModelSpec.read(self.model.path)
        config = self.config
        adapters = adapters_of(config.lora, spec, self.topology, config.train.seed)
        self.engine = self.new_engine(spec, optimizer=config.optimizer, adapters=adapters)
        wants_reference = config.algorithm.kl_coef > 0 and config.cluster.reference_ranks is None
        self.reference = (
            before_training(self.engine, lambda: self.new_engine(spec)) if wants_reference else None
        )
        decay = config.ema.decay
        self.average = None if decay is None else AveragedWeights(self.engine, decay)

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

    # -- average ----------------------------------------------------------------------------------

    def train(self, sequences: list[TokenSequence], loss: TokenLoss, lr: float) -> dict[str, float]:
        """See `ModelWorker.train`; the average follows."""
        metrics = super().train(sequences, loss, lr)
        if self.average is not None and not metrics["skipped_steps"]:
            self.average.update()
        return metrics

    def save(self, directory: str) -> None:
        """See `ModelWorker.save`; the average is a checkpoint inside that one."""
        super().save(directory)
        if self.average is not None:
            self.average.save(Path(directory) / "average")

    def load(self, directory: str) -> None:
        """See `ModelWorker.load`."""
        super().load(directory)
        if self.average is not None:
            self.average.load(Path(directory) / "average")

    def export_average(self, directory: str) -> None:
        """See `ModelWorker.export`; of the average of the weights."""
        assert self.average is not None
        with self.average.in_place():
            self.export(directory)

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
            self._sender = sender_of(self.engine, infos[0].transport)
        for info in infos:
            self._sender.connect(info, self.engine.device, self._store)

    def stream(self, engines: list[int]) -> dict[int, Sent]:
        """Send the actor's weights to some engines: see `Sender.send`."""
        assert self._sender is not None
        self.engine.settle()
        return self._sender.send(engines)

    def stream_fingerprints(self, engines: list[int]) -> dict[Worker, Fingerprints]:
        """Fingerprints of what `stream` sends from this rank."""
        assert self._sender is not None
        self.engine.settle()
        return self._sender.fingerprints(engines)

    # -- memory -----------------------------------------------------------------------------------

    def offload(self, *parts: Part) -> int:
        """Give back memory: see `ModelEngine.offload`; the reference's weights go with the actor's."""
        if "weights" in parts and self.reference is not None:
            self.reference.offload("weights")
        if "weights" in parts and self.average is not None:
            self.average.offload()
        return super().offload(*parts)

    def reload(self, *parts: Part) -> None:
        """Undo `offload`: see `ModelEngine.reload`."""
        super().reload(*parts)
        if parts and "weights" not in parts:
            return
        if self.reference is not None:
            self.reference.reload()
        if self.average is not None:
            self.average.reload()


def sender_of(engine: ModelEngine, transport: str) -> Sender | AdapterSender | M2NSender:
    """What sends a model's weights or, where only these are trained, its adapters."""
    if TRANSPORTS[transport].of_vllm:
        return M2NSender(engine.spec, engine.chunks, engine.rank)
    if engine.adapters is None:
        return Sender(engine.spec, engine.chunks, engine.rank)
    return AdapterSender(engine.adapters.spec, engine.chunks, engine.rank)
