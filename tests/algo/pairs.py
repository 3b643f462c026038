"""Random sequences for the offline losses: packed as the engine packs them, and as plain lists."""

import random

import torch

from megarlhf.data.packing import collate
from megarlhf.data.records import Sequence


def draw(lengths, *, seed=0, fields=(), values=(), last_trained=True):
    """Sequences whose masks, fields and values are random; the first token is never trained on."""
    rng = random.Random(seed)
    sequences = []
    for length in lengths:
        mask = [0.0, *(float(rng.random() < 0.6) for _ in range(length - 1))]
        if last_trained:
            mask[-1] = 1.0
        sequences.append(
            Sequence(
                [rng.randrange(50) for _ in range(length)],
                mask,
                {name: [0.0, *(rng.gauss(-1, 0.5) for _ in range(length - 1))] for name in fields},
                {name: float(make(rng)) for name, make in dict(values).items()},
            )
        )
    return sequences


def packed(sequences, indices, *, seed=1, pad_to_multiple=1):
    """(outputs [T] in float64 with a gradient, micro-batch in float64, outputs by sequence).

    Outputs by sequence are aligned as `Sequence` is: entry t belongs to the prediction of token t;
    one more stands behind them, what comes out at the last token.
    """
    batch = collate(sequences, indices, pad_to_multiple=pad_to_multiple)
    batch.loss_mask = batch.loss_mask.double()
    begin = 0
    rows = {}
    rng = random.Random(seed)
    flat = []
    for index, length in zip(batch.order, batch.lengths, strict=True):
        own = [rng.gauss(-1, 0.7) for _ in range(length)]
        rows[index] = [0.0, *own[: len(sequences[index].token_ids)]]
        flat += own
        for name, of_tokens in batch.fields.items():
            exact = torch.tensor(sequences[index].fields[name][1:], dtype=torch.float64)
            if of_tokens.dtype != torch.float64:
                batch.fields[name] = of_tokens = of_tokens.double()
            of_tokens[begin : begin + len(exact)] = exact
        begin += length
    for name in batch.values:
        numbers = [sequences[index].values[name] for index in batch.order]
        batch.values[name] = torch.tensor(numbers, dtype=torch.float64)
    return torch.tensor(flat, dtype=torch.float64, requires_grad=True), batch, rows
