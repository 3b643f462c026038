"""The table of a run's page that shows sampled rollouts."""

import json
from html import escape
from typing import Any

from megarlhf.report.text import format_number, is_number

MAX_ROLLOUTS = 100  # rows of the table, taken evenly over the run
CLIP = 240  # characters of a text that show at once
MAX_TEXT = 4000  # characters of a text that are in the page at all


def rollout_table(rollouts: list[dict]) -> str:
    """The section of sampled rollouts, the newest first; nothing without any."""
    if not rollouts:
        return ""
    shown = list(rollouts)
    if len(rollouts) > MAX_ROLLOUTS:
        stride = (len(rollouts) - 1) / (MAX_ROLLOUTS - 1)
        shown = [rollouts[round(index * stride)] for index in range(MAX_ROLLOUTS)]
    rewards = [rollout["reward"] for rollout in rollouts if is_number(rollout.get("reward"))]
    span = (min(rewards), max(rewards)) if rewards else (0.0, 0.0)
    rows = "\n".join(_rollout_row(rollout, span) for rollout in reversed(shown))
    heads = "".join(f"<th>{n}</th>" for n in ("step", "prompt", "response", "label", "reward"))
    return (
        f"<h2>Rollouts <small>{len(shown):,} of {len(rollouts):,} sampled, newest first</small>"
        f"</h2><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    )


def _rollout_row(rollout: dict[str, Any], span: tuple[float, float]) -> str:
    reward = rollout.get("reward")
    shade, figure = "", "-"
    if is_number(reward):
        figure = format_number(reward)
        low, high = span
        shade = f" r{min(4, int((reward - low) / (high - low) * 5))}" if high > low else ""
    cut = "" if rollout.get("finish_reason") != "length" else " <small>[cut at the limit]</small>"
    label = rollout.get("label")
    label = label if isinstance(label, str) else json.dumps(label, ensure_ascii=False)
    return (
        f'<tr><td class="number" data-name="step">{rollout["step"]}</td>'
        f'<td class="text" data-name="prompt">{_clipped(rollout.get("prompt"))}</td>'
        f'<td class="text" data-name="response">{_clipped(rollout.get("response"))}{cut}</td>'
        f'<td data-name="label">{_clipped("" if label == "null" else label)}</td>'
        f'<td class="number{shade}" data-name="reward">{figure}</td></tr>'
    )


def _clipped(text: Any) -> str:
    """The text, escaped; what is beyond ``CLIP`` characters folds away."""
    text = "" if text is None else str(text).strip()
    if len(text) <= CLIP:
        return escape(text)
    cut = text.rfind(" ", CLIP // 2, CLIP) + 1 or CLIP
    rest = text[cut:MAX_TEXT]
    if len(text) > MAX_TEXT:
        rest += f" … ({len(text) - MAX_TEXT:,} more characters)"
    return f"<details><summary>{escape(text[:cut])}</summary>{escape(rest)}</details>"
