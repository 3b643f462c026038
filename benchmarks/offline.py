"""Tokens a second of SFT and DPO steps: ours, packed, against Hugging Face's model in padded batches.

One process, one thread, in turns, the same weights and rows. The padded way is that of TRL's trainers:
micro-batches of a fixed number of rows, filled up to the longest of them; for DPO the chosen and the
rejected answers in one batch, the reference's log-probabilities of them in a second forward pass. TRL
itself is no dependency, so its loops are written out here. Rows have lengths like those of GSM8K's
solutions (log-normal).
"""

import argparse
import functools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import table, take_turns, write_json
from benchmarks.train_step import LR, SIZES, VOCABULARY, write_model
from megarlhf.algo.preference_loss import PreferenceLoss
from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.config.schema import ModelConfig, OptimizerConfig, PreferenceLossConfig
from megarlhf.data.records import Example
from megarlhf.data.records import Sequence as TokenSequence
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
    join_world(0, 1, "127.0.0.1", 29512)
    with tempfile.TemporaryDirectory() as directory:
        path = write_model(Path(directory), options.size)
        pairs = draw_pairs(options.rows, options.longest)
        answers = [Example([s], e.prompt_tokens) for e in pairs for s in e.sequences]
        ours, theirs = Ours(path, options), Padded(path, options)
        rows = []
        for method, examples in (("sft", answers), ("dpo", pairs)):
            tokens = sum(len(s.token_ids) for e in examples for s in e.sequences)
            seconds = take_turns(
                {
                    "megarlhf, packed": functools.partial(getattr(ours, method), examples),
                    "Hugging Face, padded": functools.partial(getattr(theirs, method), examples),
                },
                rounds=options.rounds,
                warmup=1,
            )
            base = seconds["Hugging Face, padded"]
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


class Padded:
    """Hugging Face's model with its default attention, torch's fused AdamW and padded batches."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM

        self._rows = options.micro_batch
        self._model, self._reference = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for _ in range(2)
        )
        self._model.train()
        self._reference.eval()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=LR, fused=True)

    def sft(self, examples: Sequence[Example]) -> None:
        """One step."""
        trained = sum(sum(e.sequences[0].loss_mask) for e in examples)
        for part in self._micro_batches(examples, self._rows):
            logprobs = self._logprobs(self._model, [e.sequences[0] for e in part])
            (-logprobs.sum() / trained).backward()
        self._finish()

    def dpo(self, examples: Sequence[Example]) -> None:
        """One step, the reference's pass included."""
        for part in self._micro_batches(examples, max(1, self._rows // 2)):
            sequences = [e.sequences[0] for e in part] + [e.sequences[1] for e in part]
            ratios = self._logprobs(self._model, sequences).sum(-1)
            with torch.no_grad():
                reference = self._logprobs(self._reference, sequences).sum(-1)
            chosen, rejected = (ratios - reference).chunk(2)
            (-F.logsigmoid(BETA * (chosen - rejected)).sum() / len(examples)).backward()
        self._finish()

    @staticmethod
    def _micro_batches(examples: Sequence[Example], rows: int) -> list[Sequence[Example]]:
        return [examples[begin : begin + rows] for begin in range(0, len(examples), rows)]

    @staticmethod
    def _logprobs(model: Any, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """[B, L - 1], 0 where not trained."""
        longest = max(len(s.token_ids) for s in sequences)

        def padded(values: Sequence[float], kind: torch.dtype) -> torch.Tensor:
            return torch.tensor([[*v, *[0] * (longest - len(v))] for v in values], dtype=kind)

        ids = padded([s.token_ids for s in sequences], torch.int64)
        attended = padded([[1] * len(s.token_ids) for s in sequences], torch.int64)
        mask = padded([s.loss_mask for s in sequences], torch.float32)[:, 1:]
        logits = model(ids, attention_mask=attended).logits[:, :-1]
        return logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2) * mask

    def _finish(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


if __name__ == "__main__":
    main()
