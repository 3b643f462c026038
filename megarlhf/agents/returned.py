"""Read what an agent's methods and programs returned."""

from collections.abc import Mapping
from typing import Any

from megarlhf.agents.messages import AgentFailed, Observation, Step, Verdict
from megarlhf.rewards.returned import read_returned
from megarlhf.rewards.scorer import CallFailed

STEP_KEYS = {"observation", "reward", "done", "score", "extra_logs"}
VERDICT_KEYS = {"reward", "score", "extra_logs"}


def read_observation(value: Any, subject: str) -> Observation:
    """Text or token ids (list, tuple, 1-d tensor or array of integers).

    Raises:
        AgentFailed: It is something else.
    """
    if isinstance(value, str):
        return value
    ids = value.tolist() if hasattr(value, "tolist") else value
    whole = isinstance(ids, list | tuple) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids
    )
    if not whole:
        raise AgentFailed(f"{subject} returned {value!r:.80}, neither a text nor token ids")
    return list(ids)


def read_step(returned: Any, subject: str) -> Step:
    """A mapping of ``observation``, ``reward``, ``done`` and, if wanted, ``score``, ``extra_logs``.

    ``observation`` may be missing where ``done`` is true, ``reward`` (0 then) where it is not.

    Raises:
        AgentFailed: It is something else, or a number is not finite.
    """
    fields = _fields(returned, STEP_KEYS, subject)
    if not isinstance(fields.get("done"), bool):
        raise AgentFailed(f"{subject} returned {fields!r:.200} without 'done': true or false")
    done = fields["done"]
    if not done and "observation" not in fields:
        raise AgentFailed(f"{subject} returned no 'observation', and the episode is not done")
    if done and "reward" not in fields:
        raise AgentFailed(f"{subject} returned no 'reward', and the episode is done")
    verdict = _verdict({"reward": 0.0, **fields}, subject)
    return Step(
        observation="" if done else read_observation(fields["observation"], f"{subject}:"),
        reward=verdict.reward,
        done=done,
        score=verdict.score if fields.get("score") is not None else None,
        logs=verdict.logs,
    )


def read_verdict(returned: Any, subject: str) -> Verdict:
    """A number, or a mapping of ``reward`` and, if wanted, ``score`` and ``extra_logs``.

    Raises:
        AgentFailed: It is something else, or a number is not finite.
    """
    if not isinstance(returned, Mapping):
        return _verdict({"reward": returned}, subject)
    fields = _fields(returned, VERDICT_KEYS, subject)
    if "reward" not in fields:
        raise AgentFailed(f"{subject} returned {fields!r:.200} without 'reward'")
    return _verdict(fields, subject)


def _fields(returned: Any, known: set[str], subject: str) -> dict[str, Any]:
    if not isinstance(returned, Mapping):
        raise AgentFailed(f"{subject} returned {returned!r:.200}, not a dictionary")
    if unknown := sorted(map(str, set(returned) - known)):
        raise AgentFailed(
            f"{subject} returned the key {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    return dict(returned)


def _verdict(fields: Mapping[str, Any], subject: str) -> Verdict:
    def listed(value: Any) -> list[Any]:
        return [value.item() if hasattr(value, "item") else value]  # of a tensor with one element

    score = fields.get("score")
    batch = {
        "rewards": listed(fields["reward"]),
        "scores": None if score is None else listed(score),
        "extra_logs": fields.get("extra_logs"),
    }
    try:
        read = read_returned(batch, 1, subject)
    except CallFailed as failure:
        raise AgentFailed(failure.reason) from None
    except (ValueError, RuntimeError) as error:  # `item` of several numbers
        raise AgentFailed(f"{subject}: {error}") from None
    (reward,), (score,) = read.rewards, read.scores
    assert reward is not None and score is not None
    return Verdict(reward, score, read.logs)
