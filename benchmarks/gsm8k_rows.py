"""GSM8K as rows for every offline method, and a small model of random weights to train on them.

    python -m benchmarks.gsm8k_rows --data DIR --out OUT

DIR holds gsm8k_train.jsonl and gsm8k_model_solutions.jsonl: of https://github.com/openai/grade-school-math
the files train.jsonl and example_model_solutions.jsonl. OUT gets ``model/`` and, for each method, rows
to train on and rows of other questions to evaluate on. docs/methods.md shows what comes of them.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from megarlhf.demo.model import write_llama

VOCABULARY, HELD_OUT_EVERY = 2048, 5
PROMPT = "Question: {}\nAnswer: "


def main() -> None:
    """Write the model and the rows."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    problems = _read(arguments.data / "gsm8k_train.jsonl")
    solved = _read(arguments.data / "gsm8k_model_solutions.jsonl")
    make_model(arguments.out / "model", (f"{p['question']}\n{p['answer']}" for p in problems))
    texts = [{"input": p["question"], "output": p["answer"]} for p in problems]
    _write(arguments.out, "sft", {"train": texts[300:], "eval": texts[:300]})
    for method, make in {"pairs": pairs, "unpaired": unpaired, "steps": steps}.items():
        parts: dict[str, list[dict]] = {"train": [], "eval": []}
        for number, problem in enumerate(solved):
            part = "eval" if number % HELD_OUT_EVERY == 0 else "train"
            parts[part] += make(problem["question"], _solutions(problem))
        _write(arguments.out, method, parts)


def pairs(question: str, solutions: list[dict[str, Any]]) -> list[dict]:
    """A right solution with a wrong one; as many pairs as there are of the fewer."""
    right = [s["solution"] for s in solutions if s["is_correct"]]
    wrong = [s["solution"] for s in solutions if not s["is_correct"]]
    return [
        {"prompt": question, "chosen": chosen, "rejected": rejected}
        for chosen, rejected in zip(right, wrong, strict=False)
    ]


def unpaired(question: str, solutions: list[dict[str, Any]]) -> list[dict]:
    """Every solution, desirable if it is right."""
    return [
        {"prompt": question, "completion": s["solution"], "label": s["is_correct"]}
        for s in solutions
    ]


def steps(question: str, solutions: list[dict[str, Any]]) -> list[dict]:
    """Every solution's lines, each labelled with whether the solution ends at the right answer."""
    rows = []
    for solution in solutions:
        lines = [line for line in solution["solution"].split("\n") if line.strip()]
        labels = [float(solution["is_correct"])] * len(lines)
        rows.append({"prompt": question, "completions": lines, "labels": labels})
    return rows


def make_model(directory: Path, texts: Iterable[str]) -> None:
    """A Llama of 1.4 M random parameters and a byte-pair tokenizer trained on the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    special = {"pad_token_id": tokenizer.pad_token_id}
    write_llama(directory, tokenizer, seed=1, max_position_embeddings=1024, **special)


def _solutions(problem: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in problem.values() if isinstance(value, dict)]


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(directory: Path, method: str, parts: dict[str, list[dict]]) -> None:
    for part, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{method}_{part}.jsonl").write_text(text, encoding="utf-8")
        print(f"{method}_{part}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
