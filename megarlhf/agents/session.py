"""One program's conversations with the model, as the endpoint records them."""

from dataclasses import dataclass

from megarlhf.agents.messages import AgentFailed, Verdict
from megarlhf.agents.sampling import Asking
from megarlhf.agents.tokens import Tokens
from megarlhf.agents.transcript import Transcript
from megarlhf.data.records import Episode, Prompt, Sample


class Refused(Exception):
    """A request that cannot be answered.

    Args:
        message: Why.
        code: As OpenAI's endpoint calls it, where it has a name for it.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Branch:
    """A sequence, and the text that its tokens stand for."""

    transcript: Transcript
    text: str


class Session:
    """Everything one program asks; a later prompt that continues a sequence becomes part of it.

    It continues one if its text begins with the sequence's: then the sequence's own ids are kept
    and only the rest is tokenized. Any other prompt begins a sequence of its own.

    Args:
        prompt: The data's, for its index and label.
        asking: How the model is asked.
        tokens: The tokenizer.
        max_turns: Completions, at most.
        max_length: Tokens of a sequence, at most.

    Attributes:
        overridden: Requests that wanted other sampling settings than the run's.
        error: What ended a request that was none of the program's doing.
    """

    def __init__(
        self, prompt: Prompt, asking: Asking, tokens: Tokens, *, max_turns: int, max_length: int
    ) -> None:
        self._prompt, self._asking, self._tokens = prompt, asking, tokens
        self._max_turns, self._max_length = max_turns, max_length
        self._branches: list[_Branch] = []  # the one that was extended last is the last
        self._begun = self._finished = 0
        self.overridden = 0
        self.error: BaseException | None = None

    async def complete(
        self, prompt: str | list[int], max_tokens: int | None, *, special: bool
    ) -> tuple[Sample, int]:
        """The model's answer, and how many tokens the prompt has.

        Args:
            prompt: Text, or the very ids.
            max_tokens: Of the answer; None: as many as there is room for.
            special: The tokenizer adds its special tokens to a text that begins a sequence.

        Raises:
            Refused: A limit is reached.
        """
        if self._begun >= self._max_turns:
            raise Refused(
                f"this is completion {self._begun + 1}: agent.max_turns={self._max_turns}"
            )
        ids = self._ids(prompt, special) if isinstance(prompt, str) else self._tokens.of(prompt)
        room = self._max_length - len(ids)
        if room < 1 or not ids:
            raise Refused(
                f"the prompt has {len(ids)} tokens; prompt and answer may have {self._max_length} "
                "(data.max_prompt_tokens + rollout.max_new_tokens)",
                "context_length_exceeded",
            )
        self._begun += 1
        room = min(room, self._asking.sampling.max_new_tokens, max_tokens or room)
        answer = await self._asking.answer(ids, self._begun, room)
        self._record(prompt, ids, answer)
        return answer, len(ids)

    def as_sample(self, verdict: Verdict) -> Sample:
        """All of it with what the program says it is worth.

        Raises:
            AgentFailed: The model was not asked.
        """
        if not self._branches:
            raise AgentFailed("the program ended without an answer of the model")
        parts = [branch.transcript.as_sample(self._tokens.text) for branch in self._branches]
        sample = parts[-1]
        sample.earlier = parts[:-1]
        sample.reward, sample.score = verdict.reward, verdict.score
        counts = {"sequences": len(parts), "overridden": self.overridden}
        sample.episode = Episode(self._finished, "done", verdict.logs, counts)
        return sample

    def _ids(self, text: str, special: bool) -> list[int]:
        fitting = [branch for branch in self._branches if text.startswith(branch.text)]
        if not fitting:
            return self._tokens.encode(text, special=special)
        longest = max(fitting, key=lambda branch: len(branch.text))
        rest = self._tokens.encode(text[len(longest.text) :], special=False)
        return [*longest.transcript.token_ids, *rest]

    def _record(self, prompt: str | list[int], ids: list[int], answer: Sample) -> None:
        """Into the longest sequence that the prompt continues now, or into a new one."""
        text = prompt if isinstance(prompt, str) else self._tokens.text(ids, special=True)
        text += self._tokens.text(answer.response_ids, special=True)

        def continued(branch: _Branch) -> bool:
            own = branch.transcript.token_ids
            return ids[: len(own)] == own

        fitting = [branch for branch in self._branches if continued(branch)]
        if fitting:
            branch = max(fitting, key=lambda branch: len(branch.transcript.token_ids))
            self._branches.remove(branch)
            branch.transcript.observed(ids[len(branch.transcript.token_ids) :])
            branch.text = text
        else:
            shown = self._tokens.text(ids, special=True)
            begin = Prompt(self._prompt.index, shown, tuple(ids), self._prompt.label)
            branch = _Branch(Transcript(begin), text)
        branch.transcript.sampled(answer)
        self._branches.append(branch)
        self._finished += 1
