"""Settings of multi-turn agents."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AgentConfig:
    """An agent that the model answers in turns and that gives the rewards: one of the first three."""

    file: str | None = None  # a Python file that defines class Agent: reset and step
    program: str | None = None  # one that defines run(prompt, label, base_url, api_key)
    command: str | None = None  # a command line that asks at $OPENAI_BASE_URL with $OPENAI_API_KEY
    max_turns: int = 8  # times that an episode asks the model, at most
    max_turn_tokens: int | None = None  # of one answer; rollout.max_new_tokens is for all together
    observation_template: str | None = None  # around a text, e.g. "<|user|>{}<|assistant|>"
    concurrency: int = 512  # episodes at the same time, at most
    workers: int = 1  # processes that the episodes of file or program share
    timeout_s: float = 300.0  # the longest a call of reset or step, or a whole program, may take
    retries: int = 3  # times that a failing episode is begun again
    on_failure: Literal["stop", "drop"] = "stop"  # then: end the run, or go on without the sample

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return any(one is not None for one in (self.file, self.program, self.command))
