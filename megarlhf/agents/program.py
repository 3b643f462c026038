"""An episode of a program that asks the model through the endpoint."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from megarlhf.agents.endpoint import Endpoint
from megarlhf.agents.loopback import direct
from megarlhf.agents.messages import AgentFailed, Verdict
from megarlhf.agents.pool import AgentPool
from megarlhf.agents.returned import read_verdict
from megarlhf.agents.sampling import Asking
from megarlhf.agents.session import Session
from megarlhf.agents.tokens import Tokens
from megarlhf.data.records import Prompt, Sample
from megarlhf.rewards.user_process import kill_group, status_text

SHOWN = 2000  # characters of what a command says


class Runner(Protocol):
    """Runs a program for one prompt."""

    async def run(self, prompt: Prompt, url: str, key: str, *, alone: bool) -> Verdict:
        """What it returns; `AgentFailed` where it fails."""


@dataclass(frozen=True)
class Function:
    """The function ``run`` of the user's file, in a process of the pool."""

    pool: AgentPool

    async def run(self, prompt: Prompt, url: str, key: str, *, alone: bool) -> Verdict:
        """See `Runner`."""
        async with self.pool.place(alone=alone) as place:
            return await place.call("run", prompt.text, prompt.label, url, key)


@dataclass(frozen=True)
class CommandLine:
    """A command: it reads prompt and label as JSON, and its last line is what `read_verdict` takes.

    Attributes:
        words: The command and its arguments.
        timeout_s: The longest it may take.
        threads: Wait for it, one for each that runs.
    """

    words: Sequence[str]
    timeout_s: float
    threads: Executor

    async def run(self, prompt: Prompt, url: str, key: str, *, alone: bool) -> Verdict:
        """See `Runner`; it always has a process of its own."""
        asked = json.dumps({"prompt": prompt.text, "label": prompt.label}).encode()
        try:
            process = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a group to kill as a whole
                env={**direct(os.environ), "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key},
            )
        except OSError as error:
            raise AgentFailed(f"the command does not start: {error}") from None
        loop = asyncio.get_running_loop()
        talk = loop.run_in_executor(self.threads, process.communicate, asked)
        try:
            async with asyncio.timeout(self.timeout_s):
                said, complaints = await asyncio.shield(talk)
        except TimeoutError:
            raise AgentFailed(f"the command did not end within {self.timeout_s:g} s") from None
        finally:
            kill_group(process.pid)
            await talk
        if process.returncode:
            ending = status_text(process.returncode)
            raise AgentFailed(f"the command ended with {ending}", _shown(complaints))
        lines = said.decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        with contextlib.suppress(ValueError):
            return read_verdict(json.loads(last), "the command")
        raise AgentFailed(
            f"the command's last line is no reward: {last!r:.200}", _shown(complaints)
        )


@dataclass(frozen=True)
class Program:
    """Plays episodes.

    Attributes:
        runner: Runs the program.
        endpoint: What it asks.
        tokens: The tokenizer.
        max_turns: Completions of an episode, at most.
        max_length: Tokens of a sequence, at most.
    """

    runner: Runner
    endpoint: Endpoint
    tokens: Tokens
    max_turns: int
    max_length: int

    async def play(self, prompt: Prompt, asking: Asking, *, alone: bool) -> Sample:
        """One episode, scored.

        Raises:
            AgentFailed: The program failed.
        """
        session = Session(
            prompt, asking, self.tokens, max_turns=self.max_turns, max_length=self.max_length
        )
        try:
            with self.endpoint.session(session, asking.sampling) as key:
                verdict = await self.runner.run(prompt, self.endpoint.url, key, alone=alone)
            return session.as_sample(verdict)
        finally:
            if session.error is not None:
                raise session.error


def _shown(text: bytes) -> str:
    return text.decode(errors="replace")[-SHOWN:].rstrip()
