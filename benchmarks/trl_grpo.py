"""Steps of TRL's GRPOTrainer, with the seconds of their parts, for `benchmarks.rl_step`."""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from megarlhf.demo.reward import final_answer


class Clock(TrainerCallback):
    """Seconds of each phase, step by step; what is in none of them is ``rest``."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = {}
        self._began = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of a step."""
        began = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """A step begins: before its samples are made."""
        if not self._began:
            self._began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer has stepped."""
        now = time.perf_counter()
        whole, parts = now - self._began, self._seconds
        self.steps.append({**parts, "rest": whole - sum(parts.values()), "step": whole})
        self._began, self._seconds = now, {}


class Timed(GRPOTrainer):
    """TRL's trainer with a clock around the parts of its step."""

    clock: Clock

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.phase("generate"):
            return super()._generate(*args, **kwargs)

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.phase("experience"):  # generation included, which is taken out below
            return super()._generate_and_score_completions(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer`."""
        with self.clock.phase("forward"):
            return super().compute_loss(*args, **kwargs)


def main() -> None:
    """Run from the command line; writes the seconds of every step as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", help="JSON: see `benchmarks.rl_step.Case`")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    case = json.loads(options.settings)
    torch.set_num_threads(case["cores"])
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    rows = [json.loads(line) for line in Path(case["prompts"]).read_text().splitlines()]
    rows = [
        {"prompt": [{"role": "user", "content": row["question"]}], "label": row["label"]}
        for row in rows[: case["prompts_per_step"] * case["steps"]]
    ]
    batch = case["prompts_per_step"] * case["samples"]
    config = GRPOConfig(
        output_dir=str(options.out.parent / "trl"),
        per_device_train_batch_size=case["micro_batch"],
        gradient_accumulation_steps=batch // case["micro_batch"],
        num_generations=case["samples"],
        max_completion_length=case["max_new_tokens"],
        max_steps=case["steps"],
        learning_rate=case["lr"],
        lr_scheduler_type="constant",
        beta=case["kl_coef"],
        temperature=1.0,
        loss_type="grpo",
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )

    def reward(completions: list[Any], label: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [float(final_answer(t) == one) for t, one in zip(texts, label, strict=True)]

    clock = Clock()
    lengths: list[int] = []

    def counted(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [0.0] * len(completion_ids)

    trainer = Timed(
        AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32),
        reward_funcs=[reward, counted],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.clock = clock
    trainer.train()
    for step in clock.steps:
        step["experience"] -= step["generate"]
        step["rest"] += step["generate"]  # it was taken off twice
    length = sum(lengths) / len(lengths)
    options.out.write_text(json.dumps({"steps": clock.steps, "length": length}))


if __name__ == "__main__":
    main()
