"""The same batch through Hugging Face's own model: logits, loss and gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.models.spec import ModelSpec
from megarlhf.parity.auxiliary import RoutingLosses
from megarlhf.parity.batch import TARGET, Batch


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


def run_huggingface(
    spec: ModelSpec, dtype: str, batch: Batch, routing: RoutingLosses
) -> HuggingFaceRun:
    """Run every sequence on its own, without padding, through Hugging Face's model."""
    model = _load(spec, dtype)
    total = sum(sum(sequence.loss_mask) for sequence in batch.sequences)
    logits, loss = [], 0.0
    for sequence in batch.sequences:
        found, losses, routers = _run_sequence(model, spec, sequence)
        mask = torch.tensor(sequence.loss_mask[1:], device=model.device)
        share = (losses * mask).sum() / total
        (share + routing.of(spec, routers) / sum(batch.lengths)).backward()
        logits.append(found.detach().cpu())
        loss += share.item()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    return HuggingFaceRun(torch.cat(logits), loss, gradients)


def _load(spec: ModelSpec, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = AutoModelForCausalLM if spec.scalar_head is None else AutoModelForSequenceClassification
    # Its faster attention leaves out soft caps, its faster experts know no float64.
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = kind.from_pretrained(spec.path, dtype=getattr(torch, dtype), **eager)
    return model.cuda() if torch.cuda.is_available() else model


def _run_sequence(
    model: Any, spec: ModelSpec, sequence: TokenSequence
) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]:
    """What the model says of a sequence.

    Returns:
        Logits [L, V] (of a scalar head: values [L, 1]), the loss of each predicted token [L - 1] and
        the logits of each router [L, E].
    """
    ids = torch.tensor(sequence.token_ids, device=model.device)
    asked = {"output_router_logits": True} if spec.num_experts else {}
    if spec.scalar_head is None:
        output = model(ids[None], **asked)
        found = output.logits[0]
        wide = found.to(torch.promote_types(found.dtype, torch.float32))
        losses = -wide[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    else:
        output = getattr(model, model.base_model_prefix)(ids[None], **asked)
        found = model.get_submodule(spec.scalar_head)(output.last_hidden_state[0])
        wide = found.to(torch.promote_types(found.dtype, torch.float32))[:-1, 0]
        target = torch.tensor(sequence.fields[TARGET][1:], device=model.device)
        losses = (wide - target).square()
    return found, losses, output.router_logits if spec.num_experts else ()
