"""How the input of a row becomes the text and the tokens that a model sees."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from megarlhf.data.conversations import Message, check_order, is_conversation
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{}"


class InputTemplate:
    """Turns inputs into text and text into tokens, the same way for every row.

    With ``input_template``, its one ``{}`` is replaced by the input. With ``apply_chat_template``,
    the input becomes a user turn of the chat template, followed by the opening of the assistant's
    turn; it may also be a whole conversation, a list of ``{"role", "content"}``. With neither, the
    text is the input itself.

    Args:
        tokenizer: A Hugging Face tokenizer.
        input_template: Text with one ``{}``.
        apply_chat_template: Use a chat template; excludes ``input_template``.
        chat_template: The chat template (Jinja) or a file with it; None is the tokenizer's own.

    Raises:
        UserError: Both are given, the template has not exactly one ``{}``, or there is no chat
            template.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        input_template: str | None = None,
        apply_chat_template: bool = False,
        chat_template: str | None = None,
    ) -> None:
        if apply_chat_template and input_template is not None:
            raise UserError(
                "data.input_template and data.apply_chat_template exclude each other",
                fix="remove one of them",
            )
        if apply_chat_template and not (chat_template or tokenizer.chat_template):
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template",
                where="data.apply_chat_template",
                fix="give one as data.tokenizer_chat_template, use data.input_template, or a model "
                "whose tokenizer has one",
            )
        if input_template is not None and input_template.count(SLOT) != 1:
            raise UserError(
                f"{input_template!r} holds {input_template.count(SLOT)} times {SLOT}",
                where="data.input_template",
                fix=f"write {SLOT} exactly once, where the input goes",
            )
        self.tokenizer = tokenizer
        self.input_template = input_template
        self.is_chat = apply_chat_template
        self.chat_template = None if chat_template is None else _template_text(chat_template)

    def render(self, value: Any, *, where: str) -> str:
        """The text of one input, up to where the answer begins.

        Args:
            value: A string; with a chat template also a list of messages.
            where: Where the input came from, for error messages.

        Raises:
            UserError: The input is not of that kind, or the chat template refuses it.
        """
        if self.is_chat:
            return self.render_chat(self.messages(value, where), where, open_turn=True)
        if not isinstance(value, str):
            raise UserError(
                f"the input must be a string, not {type(value).__name__}",
                where=where,
                fix="correct the row or data.input_key"
                + ("; messages need data.apply_chat_template" if isinstance(value, list) else ""),
            )
        if self.input_template is None:
            return value
        return self.input_template.replace(SLOT, value)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered inputs.

        The tokenizer adds its special tokens, except to a chat template's text, which has them.
        """
        return token_ids(self.tokenizer, texts, add_special_tokens=not self.is_chat)

    def messages(self, value: Any, where: str) -> list[Message]:
        """The conversation that is to be answered: a string is a user turn.

        Raises:
            UserError: It is neither a string nor a list of messages, their roles are out of order,
                or the last is the assistant's.
        """
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if not is_conversation(value):
            raise UserError(
                "the input must be a string or a list of messages",
                where=where,
                fix='write messages as {"role": "user", "content": "..."}, both of them strings',
            )
        if value[-1]["role"] == "assistant":
            raise UserError(
                "the last message is the assistant's own, so there is nothing to answer",
                where=where,
                fix="end the input's messages before the assistant's turn",
            )
        check_order(value, where)
        return value

    def render_chat(self, messages: list[Message], where: str, *, open_turn: bool) -> str:
        """The text of a conversation, with or without the opening of the assistant's turn.

        Raises:
            UserError: The chat template refuses it.
        """
        own = {} if self.chat_template is None else {"chat_template": self.chat_template}
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_turn, **own
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise UserError(
                f"the chat template refuses the messages: {error}",
                where=where,
                fix="correct the roles and contents of the row's messages",
            ) from error


def token_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], *, add_special_tokens: bool
) -> list[list[int]]:
    """Token ids of each text; special tokens written in a text count as such either way."""
    if not texts:
        return []
    return tokenizer(
        texts, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
    )["input_ids"]


def _template_text(template: str) -> str:
    """A chat template given as such or as the name of a file."""
    if "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"neither a chat template nor a file with one: {error}",
            where="data.tokenizer_chat_template",
            fix="give a Jinja template, or the path of a file that holds one",
        ) from error
