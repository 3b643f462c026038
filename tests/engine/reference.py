"""The same training in plain torch: Hugging Face's model in fp64 and torch's AdamW."""

from functools import cache

import torch

from tests.engine.jobs import LR, OPTIMIZER, make_sequences


@cache
def hugging_face(path, lengths, steps, *, weighted=False, temperature=1.0, settings=OPTIMIZER):
    """Log-probabilities by sequence, before and after, and the metrics of every step.

    Weight decay spares the norms, as Megatron's does.
    """
    from transformers import AutoModelForCausalLM

    sequences = make_sequences(101, lengths, weighted=weighted)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}],
        lr=LR,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    masks = [_of_predictions(s.loss_mask) for s in sequences]
    weights = [
        _of_predictions(s.fields["loss_weight"]) * mask if weighted else mask
        for s, mask in zip(sequences, masks, strict=True)
    ]
    snapshots, metrics = [], []
    for step in range(steps + 1):
        logprobs, entropies = {}, {}
        for index, sequence in enumerate(sequences):
            ids = torch.tensor(sequence.token_ids)
            log_p = (model(ids[None]).logits[0, :-1] / temperature).log_softmax(-1)
            logprobs[index] = log_p.gather(1, ids[1:, None]).squeeze(1)
            entropies[index] = -(log_p.exp() * log_p).sum(-1)
        snapshots.append({index: [0.0, *values.tolist()] for index, values in logprobs.items()})
        if step == steps:
            break
        loss = -_mean(logprobs, weights)
        optimizer.zero_grad()
        loss.backward()
        most = settings.clip_grad or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
        optimizer.step()
        metrics.append(
            {
                "loss": loss.item(),
                "nll": -_mean(logprobs, masks).item(),
                "entropy": _mean(entropies, masks).item(),
                "grad_norm": norm.item(),
            }
        )
    return snapshots[0], metrics, snapshots[-1]


def _of_predictions(values):
    return torch.tensor(values[1:], dtype=torch.float64)


def _mean(values, weights):
    total = sum((values[index] * weight).sum() for index, weight in enumerate(weights))
    return total / sum(weight.sum() for weight in weights)
