"""The text of an answer as it follows its prompt: what a sampler would have to write."""

from typing import Any

from megarlhf.data.conversations import is_conversation
from megarlhf.data.records import Example, Sequence
from megarlhf.data.rows import Row, text_of
from megarlhf.data.templates import InputTemplate
from megarlhf.errors import UserError


def answer_text(
    template: InputTemplate, value: Any, prompt: str, row: Row, key: str, name: str
) -> str:
    """What follows the prompt: the answer and its end.

    The answer ends with the chat template's own end of turn, where there is one, and otherwise
    with the tokenizer's EOS. What a template writes behind an EOS (a newline, mostly) is left out:
    a sampler never gets there.

    Args:
        template: What made ``prompt`` of ``value``.
        value: The row's input.
        prompt: Its text.
        row: The row.
        key: Where its answer is: a string or, with a chat template, one assistant message.
        name: What messages call the answer.

    Raises:
        UserError: There is none, or the chat template does not keep the prompt.
    """
    answer = text_of(_plain(row, key) if template.is_chat else row, key, name)
    eos = template.tokenizer.eos_token or ""
    if not template.is_chat:
        return answer if answer.endswith(eos) else answer + eos
    turn = {"role": "assistant", "content": answer}
    messages = [*template.messages(value, row.where), turn]
    conversation = template.render_chat(messages, row.where, open_turn=False)
    return closed_turn(conversation, prompt, answer, eos, row.where, close=True)


def answered(before: list[int], after: list[int], row: Row, name: str = "output") -> Example:
    """The example of a prompt and its answer.

    Raises:
        UserError: One of them has no tokens.
    """
    if not before or not after:
        raise UserError(
            f"the {name if before else 'input'} has no tokens",
            where=row.where,
            fix="remove the row",
        )
    mask = [0.0] * len(before) + [1.0] * len(after)
    return Example([Sequence(before + after, mask)], prompt_tokens=len(before))


def closed_turn(
    conversation: str, before: str, answer: str, eos: str, where: str, *, close: bool
) -> str:
    """The assistant's turn at the end of a rendered conversation, up to where a sampler stops.

    Args:
        conversation: The text, the turn included.
        before: The text up to where the turn was opened.
        answer: The turn's content.
        eos: The tokenizer's EOS; may be empty.
        where: Where it came from, for error messages.
        close: Add EOS where the template writes no end of turn.

    Raises:
        UserError: The conversation does not begin with ``before``, or lacks the answer.
    """
    rest = conversation.removeprefix(before)
    if not conversation.startswith(before) or _squeezed(answer) not in _squeezed(rest):
        raise UserError(
            "the chat template writes the answered conversation otherwise than as the prompt "
            "followed by the output",
            where=where,
            fix="use data.input_template, or a chat template that keeps prompt and output",
        )
    if eos and rest.rstrip().endswith(eos):
        return rest.rstrip()
    ends_turn = not rest.rstrip().endswith(answer.rstrip())
    return rest if ends_turn or not close else rest + eos


def _plain(row: Row, key: str) -> Row:
    """The row with the content of a single assistant message in its place."""
    value = row.values[key]
    if is_conversation(value) and len(value) == 1 and value[0]["role"] == "assistant":
        return Row({**row.values, key: value[0]["content"]}, row.where)
    return row


def _squeezed(text: str) -> str:
    """The text without white space, which templates trim and add."""
    return "".join(text.split())
