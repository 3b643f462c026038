"""The same training in plain torch: Hugging Face's model in fp64 and torch's AdamW."""

from functools import cache

import torch

from megarlhf.config.schema import OptimizerConfig
from tests.engine.jobs import LR, make_sequences


@cache
def hugging_face(path, lengths, steps, *, weighted=False, temperature=1.0):
    """Log-probabilities before training, by sequence, and the metrics of every step."""
    from transformers import AutoModelForCausalLM

    sequences = make_sequences(101, lengths, weighted=weighted)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    settings = OptimizerConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LR,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=0.0,
    )
    before, metrics = None, []
    for _ in range(max(steps, 1)):
        logprobs, entropies = {}, {}
        for index, sequence in enumerate(sequences):
            ids = torch.tensor(sequence.token_ids)
            log_p = (model(ids[None]).logits[0, :-1] / temperature).log_softmax(-1)
            logprobs[index] = log_p.gather(1, ids[1:, None]).squeeze(1)
            entropies[index] = -(log_p.exp() * log_p).sum(-1)
        if before is None:
            before = {index: [0.0, *values.tolist()] for index, values in logprobs.items()}
        masks = [torch.tensor(s.loss_mask[1:], dtype=torch.float64) for s in sequences]
        weights = [
            torch.tensor(s.fields.get("loss_weight", s.loss_mask)[1:], dtype=torch.float64) * mask
            for s, mask in zip(sequences, masks, strict=True)
        ]
        loss = -_mean(logprobs, weights)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        metrics.append(
            {
                "loss": loss.item(),
                "nll": -_mean(logprobs, masks).item(),
                "entropy": _mean(entropies, masks).item(),
                "grad_norm": norm.item(),
            }
        )
    return before, metrics


def _mean(values, weights):
    total = sum((values[index] * weight).sum() for index, weight in enumerate(weights))
    return total / sum(weight.sum() for weight in weights)
