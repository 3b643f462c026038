"""The bodies of OpenAI's chat and text completions: what of them is understood."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megarlhf.agents.session import Refused
from megarlhf.data.templates import InputTemplate
from megarlhf.errors import UserError
from megarlhf.rollout.settings import Sampling

# What would change an answer in a way that is not offered, with the values that change nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stop": ([],),
    "suffix": ("",),
    "echo": (False,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
# What the run decides: the actor is trained on what its own settings sample.
OF_THE_RUN = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        prompt: Text of a chat template, or as it was given; or token ids.
        max_tokens: Of the answer; None: as many as there is room for.
        special: See `Session.complete`.
        overridden: It wants other sampling settings than the run's.
        logprobs: Wants the log-probabilities of its tokens.
        stream: Wants the answer as events.
    """

    prompt: str | list[int]
    max_tokens: int | None
    special: bool
    overridden: bool
    logprobs: bool
    stream: bool


class Reader:
    """Reads requests.

    Args:
        template: The chat template; None: there is none.
    """

    def __init__(self, template: InputTemplate | None) -> None:
        self._template = template

    def chat(self, body: bytes, sampling: Sampling) -> Request:
        """Of ``/v1/chat/completions``.

        Raises:
            Refused: It is not understood, or asks for what is not offered.
        """
        fields = _fields(body)
        if self._template is None:
            raise Refused("the tokenizer has no chat template: use /v1/completions")
        messages = _messages(fields.get("messages"))
        try:
            text = self._template.render_chat(messages, "messages", open_turn=True)
        except UserError as error:
            raise Refused(error.what) from None
        return _request(fields, text, False, sampling, bool(fields.get("logprobs")))

    def text(self, body: bytes, sampling: Sampling) -> Request:
        """Of ``/v1/completions``; see `chat`."""
        fields = _fields(body)
        prompt = fields.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        is_ids = isinstance(prompt, list) and all(type(i) is int and i >= 0 for i in prompt)
        if not isinstance(prompt, str) and not is_ids:
            raise Refused("'prompt' is neither one text nor one list of token ids")
        return _request(fields, prompt, True, sampling, fields.get("logprobs") is not None)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise Refused(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Refused("the body is not a JSON object")
    for name, neutral in NOT_OFFERED.items():
        if fields.get(name) is not None and fields[name] not in neutral:
            raise Refused(f"{name}={json.dumps(fields[name])[:100]} is not offered here")
    return fields


def _request(
    fields: Mapping[str, Any],
    prompt: str | list[int],
    special: bool,
    sampling: Sampling,
    logprobs: bool,
) -> Request:
    longest = fields.get("max_completion_tokens")
    longest = fields.get("max_tokens") if longest is None else longest
    if longest is not None and (type(longest) is not int or longest < 1):
        raise Refused(f"max_tokens={longest!r} is no number of tokens")
    wanted = {name: fields[name] for name in OF_THE_RUN if fields.get(name) is not None}
    overridden = any(value != getattr(sampling, name) for name, value in wanted.items())
    return Request(
        prompt, longest, special, overridden, logprobs, stream=bool(fields.get("stream"))
    )


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise Refused("'messages' is no list of messages")
    return [_message(message) for message in messages]


def _message(message: Any) -> dict[str, Any]:
    """With its parts of text joined."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused(f"not a message: {json.dumps(message)[:100]}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise Refused("a message has parts that are not text")
        content = "".join(texts)
    if not isinstance(content, str):
        raise Refused(f"a message has no text: {json.dumps(message)[:100]}")
    return {**message, "content": content}
