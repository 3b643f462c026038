"""Tokens a second of SFT and DPO steps: ours against TRL's SFTTrainer and DPOTrainer.

One process, one thread, in turns, the same weights and rows. TRL fills micro-batches of a fixed number
of rows up to the longest of them; for DPO the reference's log-probabilities are a second forward pass on
either side. Rows have lengths like those of GSM8K's solutions (log-normal). TRL is there for
development alone: requirements/dev.txt.
"""

import argparse
import functools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.timing import table, take_turns, write_json
from benchmarks.train_step import LR, SIZES, VOCABULARY, write_model
from megarlhf.algo.preference_loss import PreferenceLoss
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import ModelConfig, OptimizerConfig, PreferenceLossConfig
from megarlhf.data.records import Example
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.demo.model import make_tokenizer
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.context import sequence_sums
from megarlhf.parallel.groups import join_world, make_groups
from megarlhf.parallel.topology import Topology
from megarlhf.trainer.preparation import logprobs_of, with_loss, with_reference

BETA = 0.1


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="20m")
    parser.add_argument("--rows", type=int, default=16, help="pairs of a step; twice for SFT")
    parser.add_argument("--longest", type=int, default=512, help="tokens of a row, at most")
    parser.add_argument("--micro-batch", type=int, default=4, help="padded rows of a forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    join_world(0, 1, dist.HashStore())
    with tempfile.TemporaryDirectory() as directory:
        path = write_model(Path(directory), options.size)
        pairs = draw_pairs(options.rows, options.longest)
        answers = [Example([s], e.prompt_tokens) for e in pairs for s in e.sequences]
        ours, theirs = Ours(path, options), Trl(path, options, Path(directory))
        rows = []
        for method, examples in (("sft", answers), ("dpo", pairs)):
            tokens = sum(len(s.token_ids) for e in examples for s in e.sequences)
            seconds = take_turns(
                {
                    "megarlhf": functools.partial(getattr(ours, method), examples),
                    "TRL": functools.partial(getattr(theirs, method), examples),
                },
                rounds=options.rounds,
                warmup=1,
            )
            base = seconds["TRL"]
            rows += [
                {"method": method, "step": name, "tokens/s": tokens / s, "ratio": base / s}
                for name, s in seconds.items()
            ]
    print(table(rows))
    write_json(options.json, {**vars(options), "json": None, "rows": rows})
    torch.distributed.destroy_process_group()


def draw_pairs(count: int, longest: int) -> list[Example]:
    """Pairs of random tokens: a prompt and two answers."""
    rng = random.Random(0)

    def length() -> int:
        return max(8, min(longest // 2, round(rng.lognormvariate(0, 0.5) * longest / 5)))

    pairs = []
    for _ in range(count):
        prompt = [rng.randrange(VOCABULARY) for _ in range(length())]
        answers = [[rng.randrange(VOCABULARY) for _ in range(length())] for _ in range(2)]
        sequences = [
            TokenSequence(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))
            for answer in answers
        ]
        pairs.append(Example(sequences, len(prompt)))
    return pairs


class Ours:
    """The steps as the trainer takes them."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        topology, spec = Topology(world=1), ModelSpec.read(path)
        groups = make_groups(topology, seed=1)

        def build(optimizer: OptimizerConfig | None = None) -> ModelEngine:
            return ModelEngine(
                spec,
                ModelConfig(path=str(path), dtype="float32"),
                topology,
                groups,
                0,
                micro_batch_tokens=options.micro_batch * options.longest,
                optimizer=optimizer,
            )

        self._engine = build(OptimizerConfig(lr=LR))
        loss = PreferenceLoss(PreferenceLossConfig(beta=BETA), sequence_sums)
        self._supervised = with_loss(NegativeLogLikelihood())
        self._preference = with_reference(loss, logprobs_of(build()))

    def sft(self, examples: Sequence[Example]) -> None:
        """One step."""
        self._step(*self._supervised(examples))

    def dpo(self, examples: Sequence[Example]) -> None:
        """One step, the reference's pass included."""
        self._step(*self._preference(examples))

    def _step(self, batch: Any, loss: Any) -> None:
        self._engine.train_step(batch.sequences, loss, lr=LR, groups=batch.groups)


class Trl:
    """TRL's trainers: their collation, loss and backward pass, then their optimizer's step.

    Called a step at a time, which leaves out their loop's own work (hooks, logs), and takes turns.
    """

    def __init__(self, path: Path, options: argparse.Namespace, directory: Path) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

        def model() -> Any:
            return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

        common = {
            "output_dir": str(directory / "trl"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "optim": "adamw_torch_fused",
            "learning_rate": LR,
            "max_length": None,
        }
        tokenizer = make_tokenizer()
        self._rows = options.micro_batch
        row = {"prompt": "one", "completion": " two", "chosen": " two", "rejected": " three"}
        data = {  # of the right form; the measured rows go to the collators themselves
            "sft": Dataset.from_list([{name: row[name] for name in ("prompt", "completion")}]),
            "dpo": Dataset.from_list([{name: row[name] for name in row if name != "completion"}]),
        }
        self._sft = SFTTrainer(
            model(),
            args=SFTConfig(**common),
            train_dataset=data["sft"],
            processing_class=tokenizer,
        )
        self._dpo = DPOTrainer(
            model(),
            ref_model=model(),
            args=DPOConfig(**common, beta=BETA),
            train_dataset=data["dpo"],
            processing_class=tokenizer,
        )
        for trainer in (self._sft, self._dpo):
            trainer.create_optimizer()
            trainer.model.train()

    def sft(self, examples: Sequence[Example]) -> None:
        """One step."""
        rows = [
            {"input_ids": s.token_ids, "labels": _labels(s)} for e in examples for s in e.sequences
        ]
        trained = sum(sum(s.loss_mask) for e in examples for s in e.sequences)
        self._step(self._sft, rows, self._rows, torch.tensor(trained))

    def dpo(self, examples: Sequence[Example]) -> None:
        """One step, the reference's pass included."""
        rows = []
        for example in examples:
            ids, size = [s.token_ids for s in example.sequences], example.prompt_tokens
            prompt, chosen, rejected = ids[0][:size], ids[0][size:], ids[1][size:]
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        self._step(self._dpo, rows, max(1, self._rows // 2), None)

    @staticmethod
    def _step(trainer: Any, rows: list[dict], size: int, items: torch.Tensor | None) -> None:
        trainer.current_gradient_accumulation_steps = -(-len(rows) // size)
        for begin in range(0, len(rows), size):
            batch = trainer.data_collator(rows[begin : begin + size])
            trainer.training_step(trainer.model, batch, num_items_in_batch=items)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()


def _labels(sequence: TokenSequence) -> list[int]:
    pairs = zip(sequence.token_ids, sequence.loss_mask, strict=True)
    return [token if trained else -100 for token, trained in pairs]


if __name__ == "__main__":
    main()
