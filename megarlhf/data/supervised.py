"""Input/output rows for supervised training: the loss is on the output's tokens only."""

from typing import TYPE_CHECKING, Any

from megarlhf.config.schema import SupervisedDataConfig
from megarlhf.data.records import Sequence
from megarlhf.data.sources import Row, read_rows, short_enough
from megarlhf.data.stream import ShuffledStream
from megarlhf.data.templates import InputTemplate, token_ids
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SequenceStream(ShuffledStream[Sequence]):
    """Endless batches of sequences; see `ShuffledStream`."""


def load_supervised(
    config: SupervisedDataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> list[Sequence]:
    """Read ``config.train`` and make its rows into sequences.

    The input's text and the output's are tokenized apart and joined, so the loss begins exactly
    where a sampler would begin. The output ends with the chat template's own end of turn, where
    there is one, and otherwise with the tokenizer's EOS. What a template writes behind an EOS (a
    newline, mostly) is left out: a sampler never gets there.

    Returns:
        One sequence a row, in their order; ``loss_mask`` is 1.0 on the output, 0.0 on the input.

    Raises:
        UserError: The data cannot be read or lacks a key; a row does not suit the template, has
            no input or no output, or too many tokens (with ``overlong_rows="error"``); or none is
            left.
    """
    template = InputTemplate(
        tokenizer,
        input_template=config.input_template,
        apply_chat_template=config.apply_chat_template,
    )
    keys = [config.input_key, config.output_key]
    rows = read_rows(config.train, required_keys=keys, max_samples=config.max_samples)
    inputs = [template.render(row.values[config.input_key], where=row.where) for row in rows]
    outputs = [
        _output_text(template, text, row.values[config.input_key], row, config.output_key)
        for text, row in zip(inputs, rows, strict=True)
    ]
    input_tokens = template.tokenize(inputs)
    output_tokens = token_ids(tokenizer, outputs, add_special_tokens=False)
    for row, before, after in zip(rows, input_tokens, output_tokens, strict=True):
        if not before or not after:
            empty = "output" if before else "input"
            raise UserError(f"the {empty} has no tokens", where=row.where, fix="remove the row")
    kept = short_enough(
        rows,
        [
            len(before) + len(after)
            for before, after in zip(input_tokens, output_tokens, strict=True)
        ],
        limit=config.max_tokens,
        limit_key="data.max_tokens",
        overlong=config.overlong_rows,
        overlong_key="data.overlong_rows",
    )
    return [_sequence(input_tokens[index], output_tokens[index]) for index in kept]


def _sequence(before: list[int], after: list[int]) -> Sequence:
    return Sequence(token_ids=before + after, loss_mask=[0.0] * len(before) + [1.0] * len(after))


def _output_text(
    template: InputTemplate, input_text: str, input_value: Any, row: Row, output_key: str
) -> str:
    """What follows the input's text: the output and its end."""
    output = row.values[output_key]
    if not isinstance(output, str) or not output.strip():
        raise UserError(
            f"the output must be a string that is not blank, not {output!r}",
            where=row.where,
            fix="correct the row or data.output_key",
        )
    eos = template.tokenizer.eos_token or ""
    if not template.is_chat:
        return output if output.endswith(eos) else output + eos

    conversation = template.render_answered(input_value, output, where=row.where)
    rest = conversation.removeprefix(input_text)
    if not conversation.startswith(input_text) or _squeezed(output) not in _squeezed(rest):
        raise UserError(
            "the chat template writes the answered conversation otherwise than as the prompt "
            "followed by the output",
            where=row.where,
            fix="use data.input_template, or a chat template that keeps prompt and output",
        )
    ends_turn = not rest.rstrip().endswith(output.rstrip())
    if eos and rest.rstrip().endswith(eos):
        return rest.rstrip()
    return rest if ends_turn else rest + eos


def _squeezed(text: str) -> str:
    """The text without white space, which templates trim and add."""
    return "".join(text.split())
