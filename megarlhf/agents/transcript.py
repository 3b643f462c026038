"""The tokens of an episode as they come: sampled ones and an environment's."""

from collections.abc import Callable, Sequence

from megarlhf.data.records import Prompt, Sample


class Transcript:
    """One sequence: a prompt and what follows it, token in, token out.

    Args:
        prompt: What it begins with.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.turns = 0
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._logprobs: list[float] = []
        self._spans: list[tuple[int, int]] = []
        self._finish_reason = ""
        self._end = 0  # behind the last sampled token

    def __len__(self) -> int:
        """Tokens after the prompt."""
        return len(self._ids)

    @property
    def token_ids(self) -> list[int]:
        """All of them, the prompt's included."""
        return [*self.prompt.token_ids, *self._ids]

    def sampled(self, turn: Sample) -> None:
        """The model has answered. An environment's tokens before it count to its version."""
        begin = len(self._ids)
        self._ids += turn.response_ids
        self._mask += [1] * len(turn.response_ids)
        self._logprobs += turn.rollout_logprobs
        self._spans += [(version, begin + end) for version, end in turn.version_spans]
        self._finish_reason = turn.finish_reason
        self._end = len(self._ids)
        self.turns += 1

    def observed(self, ids: Sequence[int]) -> None:
        """The environment has written tokens, which the model answers next."""
        self._ids += ids
        self._mask += [0] * len(ids)
        self._logprobs += [0.0] * len(ids)

    def as_sample(self, text_of: Callable[..., str]) -> Sample:
        """The sequence up to its last sampled token.

        Args:
            text_of: See `Tokens.text`. Where somebody else speaks, the text shows the special tokens.
        """
        ids, mask = self._ids[: self._end], self._mask[: self._end]
        return Sample(
            prompt=self.prompt,
            response_ids=ids,
            rollout_logprobs=self._logprobs[: self._end],
            policy_version=self._spans[0][0] if self._spans else 0,
            finish_reason=self._finish_reason,
            text=text_of(ids, special=0 in mask),
            version_spans=_merged(self._spans),
            mask=mask,
        )


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours of one version as one."""
    found: list[tuple[int, int]] = []
    for version, end in spans:
        if found and found[-1][0] == version:
            found.pop()
        found.append((version, end))
    return found
