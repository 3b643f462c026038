"""From the examples that a stream drew to the batch of an optimizer step, one function a method."""

from collections import abc

from megarlhf.data.records import Batch, Example, Sequence
from megarlhf.data.stream import ShuffledStream
from megarlhf.data.unpaired import DESIRABLE

MISMATCHED = "mismatched"


class ExampleStream(ShuffledStream[Example]):
    """Endless batches of examples; see `ShuffledStream`."""


def single_batch(examples: abc.Sequence[Example]) -> Batch:
    """The batch of rows with one sequence each, whose numbers become fields; each its own group."""
    sequences = [with_constants(example.sequences[0], example.values) for example in examples]
    return _separate(sequences)


def preference_batch(examples: abc.Sequence[Example]) -> Batch:
    """The batch of some pairs.

    Returns:
        Pair i has the sequences 2 i (chosen) and 2 i + 1 (rejected), which are group i. If the
        rows have margins, every token has its row's in the field ``margin``.
    """
    sequences = [
        with_constants(sequence, example.values)
        for example in examples
        for sequence in example.sequences
    ]
    return Batch(sequences, [(2 * pair, 2 * pair + 1) for pair in range(len(examples))])


def unpaired_batch(examples: abc.Sequence[Example], *, max_tokens: int, mismatched: bool) -> Batch:
    """The batch of some answers, with mismatched pairs for the KL term if they are wanted.

    Args:
        examples: The rows of one batch over all ranks.
        max_tokens: ``data.max_tokens``: mismatched answers are cut on the right to it.
        mismatched: Add, for each row k, its answer to the prompt of row k + 1 (the first row's
            prompt for the last): an estimate of the KL to the reference needs answers that do not
            belong to their prompts (Ethayarajh et al. 2024, "KTO", section 4.1).

    Returns:
        The rows' own sequences, then the mismatched ones in the same order; each its own group.
        Fields, the same at every token: ``desirable`` (1.0 or 0.0; 0.0 where mismatched) and, if
        there are mismatched ones, ``mismatched`` (1.0 for those, 0.0 for the others).

    Raises:
        ValueError: Mismatched pairs are wanted of a single row.
    """
    own = {MISMATCHED: 0.0} if mismatched else {}
    sequences = [
        with_constants(example.sequences[0], {**example.values, **own}) for example in examples
    ]
    if mismatched:
        if len(examples) < 2:
            raise ValueError("a mismatched pair needs a batch of at least two rows")
        following = [*examples[1:], examples[0]]
        foreign = {DESIRABLE: 0.0, MISMATCHED: 1.0}
        sequences += [
            with_constants(_mismatched(asked, answer, max_tokens), foreign)
            for asked, answer in zip(following, examples, strict=True)
        ]
    return _separate(sequences)


def _mismatched(asked: Example, answer: Example, max_tokens: int) -> Sequence:
    """The prompt of one row with the answer of another."""
    prompt = asked.sequences[0].token_ids[: asked.prompt_tokens]
    response = answer.sequences[0].token_ids[answer.prompt_tokens :]
    ids = (prompt + response)[:max_tokens]
    return Sequence(ids, [0.0] * len(prompt) + [1.0] * (len(ids) - len(prompt)))


def with_constants(sequence: Sequence, values: dict[str, float]) -> Sequence:
    """The sequence with more fields, the same at every token.

    So the number of a row is wherever a token of it is, however a sequence is packed or cut.
    """
    constants = {name: [value] * len(sequence.token_ids) for name, value in values.items()}
    return Sequence(sequence.token_ids, sequence.loss_mask, {**sequence.fields, **constants})


def _separate(sequences: list[Sequence]) -> Batch:
    return Batch(sequences, [(position,) for position in range(len(sequences))])
