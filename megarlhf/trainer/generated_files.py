"""What ``megarlhf generate`` writes into ``output.dir``: JSON lines in the prompts' order.

- ``samples.jsonl``: every prompt with all its responses, their rewards and how they ended;
- ``best.jsonl``: the response with the highest reward, as rows for ``sft``: input, output, reward;
- ``pairs.jsonl``: the best and the worst, where rewards differ, as rows for ``rm`` and ``dpo``: prompt,
  chosen, rejected, margin.

The last two leave out responses that were cut at ``rollout.max_new_tokens``. Their prompts are what a
model saw, templates included: they are read without a template.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megarlhf.data.records import Sample
from megarlhf.report import jsonl

SAMPLES, BEST, PAIRS = "samples.jsonl", "best.jsonl", "pairs.jsonl"


class GeneratedFiles:
    """The files of one run.

    Args:
        directory: ``output.dir``.
        texts: What to write of each prompt, by its index.
    """

    def __init__(self, directory: Path, texts: Mapping[int, str]) -> None:
        self._directory, self._texts = directory, texts

    def go_on(self) -> set[int]:
        """The indices of the prompts that have their responses; a line that was cut is dropped."""
        jsonl.truncate_after(self._directory / SAMPLES)
        return self.done()

    def done(self) -> set[int]:
        """The indices of the prompts that have their responses."""
        return {record["step"] for record in self._records()}

    def append(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Write prompts with their scored responses."""
        for group in groups:
            jsonl.append(self._directory / SAMPLES, self._record(group))

    def _record(self, group: Sequence[Sample]) -> dict[str, Any]:
        prompt = group[0].prompt
        return {
            "step": prompt.index,  # the name by which our JSON-lines files are numbered
            "prompt": self._texts[prompt.index],
            "label": prompt.label,
            "responses": [
                {
                    "text": sample.text,
                    "reward": sample.reward,
                    "finish_reason": sample.finish_reason,
                    "tokens": len(sample.response_ids),
                }
                for sample in group
            ],
        }

    def select(self) -> dict[str, float]:
        """Write the best responses and the pairs; returns figures over all prompts."""
        best, pairs, rewards = [], [], []
        for record in self._records():
            scored = [r for r in record["responses"] if r["reward"] is not None]
            rewards += [response["reward"] for response in scored]
            whole = [r for r in scored if r["finish_reason"] == "stop" and r["text"].strip()]
            if not whole:
                continue
            high, low = (choose(whole, key=lambda r: r["reward"]) for choose in (max, min))
            row = {"step": record["step"], "label": record["label"]}
            best.append(
                {**row, "input": record["prompt"], "output": high["text"], "reward": high["reward"]}
            )
            if high["reward"] > low["reward"] and high["text"] != low["text"]:
                answers = {"chosen": high["text"], "rejected": low["text"]}
                margin = high["reward"] - low["reward"]
                pairs.append({**row, "prompt": record["prompt"], **answers, "margin": margin})
        self._write(BEST, best)
        self._write(PAIRS, pairs)
        return {
            "responses": len(rewards),
            "mean reward": math.fsum(rewards) / max(1, len(rewards)),
            "mean best reward": math.fsum(row["reward"] for row in best) / max(1, len(best)),
            "best": len(best),
            "pairs": len(pairs),
        }

    def _records(self) -> list[dict[str, Any]]:
        found = jsonl.read(self._directory / SAMPLES)
        return sorted(found, key=lambda record: record["step"])

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        file = self._directory / name
        file.write_bytes(b"")  # it is there without rows, too, and says so when it is read
        for row in rows:
            jsonl.append(file, row)
