"""The rewards that agents gave, as a run's source of rewards."""

from collections.abc import Sequence
from types import TracebackType

from megarlhf.data.records import Sample
from megarlhf.rewards.scorer import Scorer
from megarlhf.rewards.tally import Tally

LIMITS = {"done": "done", "turns": "out_of_turns", "tokens": "out_of_tokens"}


class AgentRewards:
    """Takes the place of `megarlhf.rewards.mix.Rewards`: every sample has its reward already."""

    scorers: tuple[Scorer, ...] = ()

    def check(self) -> None:
        """Nothing to check."""

    def cancel(self) -> None:
        """Nothing takes time here."""

    def __enter__(self) -> "AgentRewards":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end."""

    def score(self, samples: Sequence[Sample]) -> Tally:
        """What the samples' episodes say. Those that failed are counted and have no reward."""
        tally = Tally(samples=len(samples), setting="agent.on_failure=drop")
        for sample in samples:
            assert sample.episode is not None
            episode = sample.episode
            tally.retries += episode.retries
            if sample.reward is None:
                tally.dropped += 1
                tally.failure = tally.failure or episode.failure
                continue
            found = {"reward_from_agent": [sample.reward], "agent_turns": [float(episode.turns)]}
            found |= {
                f"agent_{name}": [float(episode.ended == ended)] for ended, name in LIMITS.items()
            }
            found |= {f"agent_{name}": [float(n)] for name, n in episode.counts.items()}
            found |= {f"extra_agent_{name}": values for name, values in episode.logs.items()}
            for name, values in found.items():
                tally.values.setdefault(name, []).extend(values)
        return tally
