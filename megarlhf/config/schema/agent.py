"""Settings of multi-turn agents."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AgentConfig:
    """An agent that the model answers in turns and that gives the rewards: one of the first three."""

    file: str | None = None  # a Python file that defines class Agent: reset and step
    program: str | None = None  # a Python file that defines run(prompt, label, base_url, api_key)
    command: str | None = None  # a command line that uses $OPENAI_BASE_URL and $OPENAI_API_KEY
    max_turns: int = 8  # how many times an episode may ask the model
    max_turn_tokens: int | None = None  # of one answer; rollout.max_new_tokens is for the episode
    observation_template: str | None = None  # around a text, e.g. "<|user|>{}<|assistant|>"
    concurrency: int = 512  # most episodes at the same time
    workers: int = 1  # processes that the episodes of file or program share
    timeout_s: float = 300.0  # longest that a call of reset or step, or a whole program, may take
    retries: int = 3  # how many times a failing episode is restarted
    on_failure: Literal["stop", "drop"] = "stop"  # then: end the run, or go on without the sample

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return any(one is not None for one in (self.file, self.program, self.command))
