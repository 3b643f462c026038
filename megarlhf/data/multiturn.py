"""Conversations to learn from: the loss is on the chosen turns of the assistant."""

from itertools import accumulate
from typing import Any, NamedTuple

from megarlhf.config.schema import SupervisedDataConfig
from megarlhf.data.answers import closed_turn
from megarlhf.data.conversations import Message, check_order, is_conversation
from megarlhf.data.records import Example, Sequence
from megarlhf.data.rows import Row
from megarlhf.data.templates import InputTemplate, token_ids
from megarlhf.data.tokenization import Skip
from megarlhf.errors import UserError


class Segment(NamedTuple):
    """A part of a conversation's text."""

    text: str
    trained: bool


class ConversationRows:
    """Makes examples of rows that hold a conversation, a list of ``{"role", "content"}``.

    ``data.turns`` chooses the assistant's turns that are learned: all, the last, or those whose
    message has ``"train": true``. Each is tokenized apart from what comes before it and ends where
    a sampler would stop (`closed_turn`). What follows the last of them is left out: nothing there
    is learned, and nothing sees it. A row without such a turn is skipped.
    """

    def __init__(self, config: SupervisedDataConfig, template: InputTemplate) -> None:
        self._key, self._turns, self._template = config.input_key, config.turns, template
        self.keys = [self._key]

    def __call__(self, rows: list[Row]) -> list[Example | Skip]:
        """See `RowBuilder`."""
        conversations = [self._segments(row) for row in rows]
        texts = [segment.text for segments in conversations for segment in segments]
        # The chat template writes the special tokens.
        tokens = token_ids(self._template.tokenizer, texts, add_special_tokens=False)
        ends = accumulate(map(len, conversations))
        return [
            _example(segments, tokens[end - len(segments) : end], row)
            for segments, end, row in zip(conversations, ends, rows, strict=True)
        ]

    def _segments(self, row: Row) -> list[Segment]:
        messages = _checked(row, self._key)
        eos = self._template.tokenizer.eos_token or ""
        segments: list[Segment] = []
        written = ""
        for position in self._chosen(messages, row):
            render = self._template.render_chat
            before = render(messages[:position], row.where, open_turn=True)
            through = render(messages[: position + 1], row.where, open_turn=False)
            if not before.startswith(written):
                raise _changes_earlier_turns(row)
            turn = closed_turn(
                through,
                before,
                messages[position]["content"],
                eos,
                row.where,
                close=position == len(messages) - 1,
            )
            segments += [Segment(before.removeprefix(written), False), Segment(turn, True)]
            written = before + turn
        return segments

    def _chosen(self, messages: list[Message], row: Row) -> list[int]:
        own = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if self._turns == "marked":
            return [position for position in own if _is_marked(messages[position], row)]
        return own[-1:] if self._turns == "last" else own


def _checked(row: Row, key: str) -> list[Message]:
    messages: Any = row.values[key]
    if not is_conversation(messages):
        raise UserError(
            f"a conversation must be a list of messages, not {messages!r:.200}",
            where=row.where,
            fix='write messages as {"role": "user", "content": "..."}, both of them strings, '
            "or set data.output_key to where the answers are",
        )
    check_order(messages, row.where)
    return messages


def _is_marked(message: Message, row: Row) -> bool:
    mark = message.get("train")
    if mark is not None and not isinstance(mark, bool):
        raise UserError(
            f'"train" of a message must be true or false, not {mark!r}',
            where=row.where,
            fix="correct the row, or choose data.turns=all or last",
        )
    return bool(mark)


def _changes_earlier_turns(row: Row) -> UserError:
    return UserError(
        "the chat template writes earlier turns otherwise once the conversation goes on",
        where=row.where,
        fix="train on data.turns=last, or with a chat template that leaves earlier turns as they are",
    )


def _example(segments: list[Segment], tokens: list[list[int]], row: Row) -> Example | Skip:
    if not segments:
        return Skip("no turn of the assistant to train on")
    sequence = Sequence([], [])
    for segment, ids in zip(segments, tokens, strict=True):
        if segment.trained and not ids:
            raise UserError("a turn has no tokens", where=row.where, fix="remove the row")
        sequence.token_ids += ids
        sequence.loss_mask += [float(segment.trained)] * len(ids)
    if not tokens[0]:
        raise UserError(
            "there are no tokens before the first turn",
            where=row.where,
            fix="use a chat template that opens the assistant's turn",
        )
    return Example([sequence], prompt_tokens=len(tokens[0]))
