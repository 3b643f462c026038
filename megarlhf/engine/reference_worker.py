"""What one rank of a reference with ranks of its own does."""

from dataclasses import replace

from megarlhf.config.schema import ModelConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.model_worker import ModelWorker
from megarlhf.models.spec import ModelSpec


class ReferenceWorker(ModelWorker):
    """One rank; see `ModelWorker`."""

    @staticmethod
    def model_of(config: RLConfig) -> ModelConfig:
        """The actor's settings in the reference's layout."""
        return replace(config.model, recompute="none", parallel=config.reference.parallel)

    def build(self) -> None:
        """Build and load the model; it is never trained."""
        self.engine = self.new_engine(ModelSpec.read(self.model.path))

    def reference_logprobs(
        self, sequences: list[TokenSequence], temperature: float
    ) -> dict[int, list[float]]:
        """See `ModelEngine.logprobs`."""
        return self.engine.logprobs(sequences, temperature=temperature)
