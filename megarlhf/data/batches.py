"""From the examples that a stream drew to the batch of an optimizer step, one function a method."""

from collections import abc
from dataclasses import replace

from megarlhf.data.records import Batch, Example, Sequence
from megarlhf.data.stream import ShuffledStream


class ExampleStream(ShuffledStream[Example]):
    """Endless batches of examples; see `ShuffledStream`."""


def batch_of(examples: abc.Sequence[Example]) -> Batch:
    """The batch of some rows: their sequences, row after row; those of a row are a group.

    So pair i has the sequences 2 i (chosen) and 2 i + 1 (rejected). The numbers of a row are
    ``values`` of each of its sequences.
    """
    sequences: list[Sequence] = []
    groups = []
    for example in examples:
        first = len(sequences)
        sequences += [
            replace(sequence, values={**sequence.values, **example.values})
            for sequence in example.sequences
        ]
        groups.append(tuple(range(first, len(sequences))))
    return Batch(sequences, groups)


def mismatched(examples: abc.Sequence[Example], *, max_tokens: int) -> list[Sequence]:
    """For each row k its answer to the prompt of row k + 1 (of the last row, the first prompt).

    An estimate of the KL to the reference needs answers that do not belong to their prompts
    (Ethayarajh et al. 2024, "KTO", arXiv:2402.01306, section 4.1).

    Args:
        examples: The rows of one batch over all ranks.
        max_tokens: ``data.max_tokens``: longer sequences are cut on the right to it.

    Raises:
        ValueError: There is a single row.
    """
    if len(examples) < 2:
        raise ValueError("a mismatched pair needs a batch of at least two rows")
    following = [*examples[1:], examples[0]]
    return [
        _mismatched(asked, answer, max_tokens)
        for asked, answer in zip(following, examples, strict=True)
    ]


def _mismatched(asked: Example, answer: Example, max_tokens: int) -> Sequence:
    """The prompt of one row with the answer of another."""
    prompt = asked.sequences[0].token_ids[: asked.prompt_tokens]
    response = answer.sequences[0].token_ids[answer.prompt_tokens :]
    ids = (prompt + response)[:max_tokens]
    return Sequence(ids, [0.0] * len(prompt) + [1.0] * (len(ids) - len(prompt)))
