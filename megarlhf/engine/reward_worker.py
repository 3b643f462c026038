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
    def describe(config: RLConfig) -> ModelConfig:
        """The actor's settings with the reward model's directory and layout."""
        (path,) = models_by_name(config.reward.models).values()
        return replace(config.model, path=path, recompute="none", parallel=config.reward.parallel)

    def build(self) -> None:
        """Build the model; it is never trained."""
        self.engine = self.new_engine(ModelSpec.read(self.model.path))

    def scores(self, token_ids: list[list[int]]) -> dict[int, float]:
        """See `ModelEngine.scores`; any number of sequences, of which some are run twice.

        The ranks share a number of sequences that their layout divides.
        """
        topology = self.topology
        stride = topology.dp * (topology.pp if topology.vpp > 1 else 1)
        missing = -len(token_ids) % stride
        whole = [*token_ids, *[token_ids[-1]] * missing]
        found = self.engine.scores([TokenSequence(ids, [0.0] * len(ids)) for ids in whole])
        return {index: score for index, score in found.items() if index < len(token_ids)}
