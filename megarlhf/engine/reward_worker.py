"""What one rank of a reward model does."""

from dataclasses import replace

from megarlhf.config.reward_checks import models_by_name
from megarlhf.config.schema import ModelConfig, RLConfig
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.model_worker import ModelWorker
from megarlhf.models.spec import ModelSpec


class RewardWorker(ModelWorker):
    """One rank of the only one of ``reward.models``; see `ModelWorker`."""

    @staticmethod
    def model_of(config: RLConfig) -> ModelConfig:
        """The actor's settings with the reward model's directory and layout."""
        (path,) = models_by_name(config.reward.models).values()
        return replace(config.model, path=path, recompute="none", parallel=config.reward.parallel)

    def build(self) -> None:
        """Build the model; it is never trained."""
        self.engine = self.new_engine(ModelSpec.read(self.model.path))

    def scores(self, token_ids: list[list[int]]) -> dict[int, float]:
        """See `ModelEngine.scores`."""
        return self.engine.scores([TokenSequence(ids, [0.0] * len(ids)) for ids in token_ids])
