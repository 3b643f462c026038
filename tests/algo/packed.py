"""Random sequences as lists of floats, for the loops, and packed in float64, for the tensors."""

import random
from itertools import accumulate

import torch

from megarlhf.algo.aggregation import loss_weight
from megarlhf.data.records import MicroBatch
from megarlhf.parallel.context import sequence_sums

MAX_TOKENS = 16


def draw_sequences(lengths, *, seed=0, spread=0.2):
    """For each sequence a dictionary of lists; log-probabilities differ by about ``spread``."""
    generator = random.Random(seed)
    sequences = []
    for length in lengths:
        logprobs = [-2 + 0.5 * generator.gauss(0, 1) for _ in range(length)]

        def near(values):
            return [value + spread * generator.gauss(0, 1) for value in values]

        sequences.append(
            {
                "logprobs": logprobs,
                "entropy": [generator.random() for _ in range(length)],
                "mask": [float(generator.random() < 0.7) for _ in range(length)],
                "advantages": [generator.gauss(0, 1) for _ in range(length)],
                "old_logprobs": near(logprobs),
                "rollout_logprobs": near(logprobs),
                "reference_logprobs": near(logprobs),
                "old_values": near(logprobs),
                "returns": near(logprobs),
            }
        )
        sequences[-1]["mask"][-1] = 1.0  # one is trained at least
    return sequences


def pack(sequences, config, *, without=()):
    """(logprobs [T] with a gradient, entropy [T], micro-batch), all float64."""

    def joined(name):
        return torch.tensor([x for s in sequences for x in s[name]], dtype=torch.float64)

    names = ("advantages", "old_logprobs", "rollout_logprobs", "reference_logprobs", "old_values")
    fields = {name: joined(name) for name in (*names, "returns") if name not in without}
    fields["loss_weight"] = torch.tensor(
        [loss_weight(config, int(sum(s["mask"]))) * m for s in sequences for m in s["mask"]],
        dtype=torch.float64,
    )
    mask = joined("mask")
    lengths = tuple(len(s["mask"]) for s in sequences)
    empty = torch.zeros(len(mask), dtype=torch.int64)
    ends = torch.zeros(len(mask), dtype=torch.bool)
    ends[[end - 1 for end in accumulate(lengths)]] = True
    order = tuple(range(len(lengths)))
    batch = MicroBatch(empty, empty, empty, mask, fields, mask == 0, ends, lengths, order)
    return joined("logprobs").requires_grad_(), joined("entropy"), batch


def divided(total, *batches):
    """As the engine divides: by the total weight of the global batch."""
    return total / sum((b.fields["loss_weight"] * b.loss_mask).sum() for b in batches)


__all__ = ["MAX_TOKENS", "divided", "draw_sequences", "pack", "sequence_sums"]
