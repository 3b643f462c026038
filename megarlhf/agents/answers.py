"""The bodies of the endpoint's answers."""

import json
import time
from typing import Any

from megarlhf.agents.requests import Request
from megarlhf.agents.tokens import Tokens
from megarlhf.data.records import Sample


def answer_body(
    kind: str, choice: dict[str, Any], answer: Sample, prompt_tokens: int, number: int
) -> dict[str, Any]:
    """The body of an answer with one choice. ``kind`` is ``chat.completion`` or ``text_completion``."""
    tokens = len(answer.response_ids)
    return {
        "id": f"{kind}-{number}",
        "object": kind,
        "created": int(time.time()),
        "model": "policy",
        "choices": [{"index": 0, "finish_reason": answer.finish_reason, **choice}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }


def chat_choice(answer: Sample, request: Request, tokens: Tokens) -> dict[str, Any]:
    """The choice of a chat completion."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": answer.text}}
    if request.logprobs:
        texts = [tokens.text([i], special=True) for i in answer.response_ids]
        content = [
            {"token": text, "logprob": p, "bytes": list(text.encode()), "top_logprobs": []}
            for text, p in zip(texts, answer.rollout_logprobs, strict=True)
        ]
        choice["logprobs"] = {"content": content}
    return choice


def text_choice(answer: Sample, request: Request, tokens: Tokens) -> dict[str, Any]:
    """The choice of a text completion."""
    choice: dict[str, Any] = {"text": answer.text}
    if request.logprobs:
        choice["logprobs"] = {
            "tokens": [tokens.text([i], special=True) for i in answer.response_ids],
            "token_logprobs": answer.rollout_logprobs,
        }
    return choice


def events(body: dict[str, Any]) -> bytes:
    """An answer for a client that wants a stream: server-sent events, the first with all of it."""
    (choice,) = body["choices"]
    if "message" in choice:
        delta = choice["message"]
        choice = {key: value for key, value in choice.items() if key != "message"}
        body = {**body, "object": "chat.completion.chunk", "choices": [{**choice, "delta": delta}]}
    return f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode()
