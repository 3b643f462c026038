"""What is known of the rewards of a step, which may be scored in several batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megarlhf.data.records import Sample
from megarlhf.errors import UserError


@dataclass
class Tally:
    """Counts, and values to average.

    Attributes:
        samples: Samples that were to be scored.
        dropped: Those of them without a reward.
        retries: Calls of functions and servers that were made again.
        values: By metric: ``reward_from_NAME``, the rewards of a source before its weight, and
            ``extra_NAME_KEY``, what it reports as ``extra_logs``.
        failure: Why one of the dropped samples has no reward, with its prompt.
        setting: By which they are dropped.
    """

    samples: int = 0
    dropped: int = 0
    retries: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""
    setting: str = "reward.on_failure=drop"

    def add(self, other: "Tally") -> None:
        """Take in another batch's."""
        self.samples += other.samples
        self.dropped += other.dropped
        self.retries += other.retries
        for name, values in other.values.items():
            self.values.setdefault(name, []).extend(values)
        self.failure = self.failure or other.failure
        self.setting = other.setting

    def check(self, limit: int) -> None:
        """Refuse to go on once ``limit`` samples are dropped.

        Raises:
            UserError: They are; shows one of the failures.
        """
        if self.dropped >= limit:
            raise UserError(
                f"{self.dropped} of {self.samples} responses could not be scored; {self.failure}",
                where=self.setting,
                fix="see that the function or servers work; the newest checkpoint is intact",
            )

    def metrics(self) -> dict[str, float]:
        """``reward_dropped`` and ``reward_retries`` (counts), and the mean of every value."""
        means = {name: sum(values) / len(values) for name, values in self.values.items() if values}
        return {
            "reward_dropped": float(self.dropped),
            "reward_retries": float(self.retries),
            **means,
        }


def complete_groups(groups: Sequence[list[Sample]]) -> list[list[Sample]]:
    """The prompts all of whose samples have a reward: estimators compare as many of each."""
    return [group for group in groups if all(sample.reward is not None for sample in group)]
