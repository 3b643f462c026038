"""The same batch through Hugging Face's own model: logits, loss and gradients."""

from dataclasses import dataclass
from pathlib import Path

import torch

from megarlhf.parity.batch import Batch


@dataclass(frozen=True)
class HuggingFaceRun:
    """Results on the CPU.

    Attributes:
        logits: [T, V], sequence after sequence.
        loss: Mean over the trained tokens.
        gradients: By name; a tied embedding once.
    """

    logits: torch.Tensor
    loss: float
    gradients: dict[str, torch.Tensor]


def run_huggingface(path: Path, dtype: str, batch: Batch) -> HuggingFaceRun:
    """Run every sequence on its own, without padding, through ``AutoModelForCausalLM``."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    if torch.cuda.is_available():
        model = model.cuda()
    total = sum(sum(sequence.loss_mask) for sequence in batch.sequences)
    logits, loss = [], 0.0
    for sequence in batch.sequences:
        ids = torch.tensor(sequence.token_ids, device=model.device)
        mask = torch.tensor(sequence.loss_mask[1:], device=model.device)
        found = model(ids[None]).logits[0]
        wide = found.to(torch.promote_types(found.dtype, torch.float32))
        logprobs = wide[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        share = -(logprobs * mask).sum() / total
        share.backward()
        logits.append(found.detach().cpu())
        loss += share.item()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    return HuggingFaceRun(torch.cat(logits), loss, gradients)
