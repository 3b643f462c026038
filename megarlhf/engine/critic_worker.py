"""What one rank of the critic does."""

from dataclasses import replace

from megarlhf.config.schema import ModelConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.model_worker import ModelWorker
from megarlhf.models.spec import ModelSpec


class CriticWorker(ModelWorker):
    """One rank; see `ModelWorker`."""

    @staticmethod
    def model_of(config: RLConfig) -> ModelConfig:
        """The actor's settings with those of the critic."""
        critic = config.critic
        return replace(
            config.model,
            path=critic.path or config.model.path,
            recompute=critic.recompute,
            parallel=critic.parallel,
        )

    def build(self) -> None:
        """Build the critic; a language model gets a new head."""
        self.engine = self.new_engine(
            ModelSpec.read_scalar(self.model.path), optimizer=self.config.critic.optimizer
        )

    def values(self, sequences: list[TokenSequence]) -> dict[int, list[float]]:
        """See `ModelEngine.values`."""
        return self.engine.values(sequences)
