"""The batch that every layout runs: seeded random tokens, ragged lengths, masked prompts."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.parity.layouts import Layout

# Ragged; two of a length (they run as one attention call), odd ones (cp and sp must pad them).
LENGTHS = (33, 7, 21, 14, 14, 40, 5, 26)
TARGET = "target"  # a field of the sequences: what a scalar head should say
MICRO_BATCH_TOKENS = 48  # four micro-batches of the eight sequences on one rank


@dataclass(frozen=True)
class Batch:
    """Sequences, and how many tokens a micro-batch holds at most."""

    sequences: list[TokenSequence]
    micro_batch_tokens: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [len(sequence.token_ids) for sequence in self.sequences]


def make_batch(
    vocab_size: int,
    max_length: int,
    layouts: Sequence[Layout],
    seed: int = 0,
    *,
    with_targets: bool = False,
    without: int | None = None,
    alone: bool = False,
) -> Batch:
    """A batch whose sequences can be dealt to the data-parallel ranks of all of the layouts.

    Eight sequences, or more where data parallelism times interleaved stages is larger. Up to two
    thirds of a sequence are a prompt, which is not trained on: so tokens that count are spread
    unevenly over the ranks, and a denominator of one rank's own would show.

    Args:
        vocab_size: Ids are below it.
        max_length: Most tokens that a sequence may have.
        layouts: All that will run it.
        seed: Of ids and prompt lengths.
        without: A token id that is left out: a model's padding, to whose embedding Hugging Face
            gives no gradient as an input.
        with_targets: Give every token the `TARGET` of a scalar head.
        alone: Every sequence is a micro-batch, whatever the layout is.
    """
    rng = random.Random(seed)
    ids = [number for number in range(vocab_size) if number != without]
    strides = [layout.dp * (layout.pp if layout.vpp > 1 else 1) for layout in layouts]
    count = math.lcm(len(LENGTHS), *strides)
    sequences = []
    for number in range(count):
        length = max(2, min(LENGTHS[number % len(LENGTHS)], max_length))
        prompt = rng.randint(1, max(1, 2 * length // 3))
        sequences.append(
            TokenSequence(
                token_ids=[rng.choice(ids) for _ in range(length)],
                loss_mask=[0.0] * prompt + [1.0] * (length - prompt),
                fields={TARGET: [rng.gauss(0, 1) for _ in range(length)]} if with_targets else {},
            )
        )
    return Batch(sequences, 1 if alone else MICRO_BATCH_TOKENS)
