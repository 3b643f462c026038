"""The bodies that a reward server and its clients exchange: JSON, as OpenRLHF's remote reward model.

``POST {"query": [...], "prompts": [...], "labels": [...]}`` is answered by ``{"rewards": [...]}``,
optionally with ``scores`` and ``extra_logs``; an error by ``{"error": "..."}``.
"""

import json
from typing import Any

from megarlhf.rewards.returned import read_returned
from megarlhf.rewards.scorer import Batch, CallFailed, Scores

PATH = "/get_reward"
SHOWN = 300  # characters of a body that is not understood


class BadRequest(Exception):
    """The body of a request is not what the protocol says."""


def write_request(batch: Batch) -> bytes:
    """The body that asks for a batch's rewards.

    Raises:
        CallFailed: A label cannot be written as JSON.
    """
    body = {"query": batch.queries, "prompts": batch.prompts, "labels": batch.labels}
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CallFailed(f"a label cannot be sent as JSON: {error}") from None


def read_request(body: bytes, max_batch: int) -> Batch:
    """The batch that a request asks to score. Prompts and labels may be missing.

    Raises:
        BadRequest: Says what is wrong with the body.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8; nested too deeply
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body is not a JSON object")
    queries = _texts(fields.get("query"), "query")
    if not queries:
        raise BadRequest("'query' is empty")
    if len(queries) > max_batch:
        raise BadRequest(f"{len(queries)} responses are more than the limit of {max_batch}")
    prompts, labels = fields.get("prompts"), fields.get("labels")
    prompts = [""] * len(queries) if prompts is None else _texts(prompts, "prompts")
    labels = [None] * len(queries) if labels is None else labels
    if not isinstance(labels, list):
        raise BadRequest("'labels' is not a list")
    for name, values in (("prompts", prompts), ("labels", labels)):
        if len(values) != len(queries):
            raise BadRequest(f"{len(values)} {name!r} for {len(queries)} 'query'")
    return Batch(queries, prompts, labels)


def _texts(values: Any, name: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadRequest(f"{name!r} is not a list of texts")
    return values


def write_response(scores: Scores) -> dict[str, Any]:
    """The answer to a request all of whose responses have a reward."""
    return {"rewards": scores.rewards, "scores": scores.scores, "extra_logs": scores.logs}


def read_response(body: bytes, count: int, subject: str) -> Scores:
    """What a server answered for ``count`` responses.

    Raises:
        CallFailed: It is not the protocol's answer, or has a reward that is not finite.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise CallFailed(f"{subject} answered no JSON: {shown(body)}", again=True) from None
    return read_returned(fields, count, subject)


def shown(body: bytes) -> str:
    """The beginning of a body, for a message; the reason where it is an error of this protocol."""
    text = body.decode(errors="replace")
    try:
        return str(json.loads(text)["error"])[: 3 * SHOWN]
    except (ValueError, RecursionError, TypeError, KeyError):
        return f"{text[:SHOWN]!r}"
