"""Adapters in plain torch: what a layer of PEFT's computes, on the Hugging Face model, in fp64."""

import torch
from torch import nn

from tests.engine.jobs import LR, OPTIMIZER

PREFIX = "base_model.model."


class Adapted(nn.Module):
    """x W^T + scaling * (x A^T) B^T, with a frozen W."""

    def __init__(self, linear, down, up, scaling):
        super().__init__()
        self.linear, self.scaling = linear, scaling
        self.A, self.B = nn.Parameter(down.double()), nn.Parameter(up.double())

    def forward(self, x):
        return self.linear(x) + self.scaling * (x @ self.A.T) @ self.B.T


def adapted_model(path, tensors, scaling):
    """The Hugging Face model in fp64 with the adapters of a file's tensors, all else frozen."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).requires_grad_(False)
    names = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
    for name in names:
        down, up = (tensors[f"{PREFIX}{name}.lora_{matrix}.weight"] for matrix in "AB")
        parent, _, last = name.rpartition(".")
        linear = model.get_submodule(name)
        setattr(model.get_submodule(parent), last, Adapted(linear, down, up, scaling))
    return model


def train(model, sequences, steps):
    """Every step's loss and gradient norm, then the log-probabilities of each sequence."""
    trained = [p for p in model.parameters() if p.requires_grad]
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=betas, eps=OPTIMIZER.eps, weight_decay=0.0)
    metrics = []
    for _ in range(steps):
        total = -sum(
            (_logprobs(model, s) * torch.tensor(s.loss_mask[1:], dtype=torch.float64)).sum()
            for s in sequences
        )
        loss = total / sum(sum(s.loss_mask[1:]) for s in sequences)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.clip_grad)
        optimizer.step()
        metrics.append({"loss": loss.item(), "grad_norm": norm.item()})
    with torch.no_grad():
        return metrics, [[0.0, *_logprobs(model, s).tolist()] for s in sequences]


def _logprobs(model, sequence):
    ids = torch.tensor(sequence.token_ids)
    log_p = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return log_p.gather(1, ids[1:, None]).squeeze(1)
