"""The smallest inputs that `prepare` and the command line accept; weights are only looked over."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from megarlhf.models.spec import ModelSpec
from tests.models.tiny import CONFIG

VOCABULARY = 258  # two special tokens and a token for each byte
LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "model_type": "llama"}
REWARD = "def reward_func(queries, prompts, labels):\n    return [0.0] * len(queries)\n"
ROWS = [{"prompt": f"{n} + 1?", "answer": n + 1} for n in range(6)]


def write_config(directory: Path, **changes) -> Path:
    """``config.json`` of a tiny Llama."""
    config = {**LLAMA, **CONFIG, "vocab_size": VOCABULARY, **changes}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(directory)


def write_weights(directory: Path) -> None:
    """Zeros of the shapes that ``config.json`` says."""
    shapes = ModelSpec.read(directory).tensors
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")


def write_rows(file: Path, rows) -> str:
    """JSON lines; returns the specification that reads them."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"json@{file}"


def write_run(directory: Path) -> list[str]:
    """Everything a run reads; returns the overrides of a right ``rl`` command."""
    model = directory / "model"
    model.mkdir()
    write_tokenizer(model)
    write_config(model)  # after the tokenizer, which writes one too
    write_weights(model)
    (directory / "reward.py").write_text(REWARD)
    return [
        f"model.path={model}",
        f"data.prompts={write_rows(directory / 'rows.jsonl', ROWS)}",
        "data.label_key=answer",
        "data.max_prompt_tokens=8",
        "rollout.prompts_per_step=2",
        "rollout.samples_per_prompt=2",
        "rollout.max_new_tokens=4",
        f"reward.function={directory / 'reward.py'}",
        f"output.dir={directory / 'out'}",
        "output.tensorboard=false",
    ]
