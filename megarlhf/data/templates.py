"""How the input of a row becomes the text and the tokens that a model sees."""

from typing import TYPE_CHECKING, Any

import jinja2

from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{}"


class InputTemplate:
    """Turns inputs into text and text into tokens, the same way for every row.

    With ``input_template``, its one ``{}`` is replaced by the input. With ``apply_chat_template``,
    the input becomes a user turn of the tokenizer's chat template, followed by the opening of the
    assistant's turn; it may also be a whole conversation, a list of ``{"role", "content"}``. With
    neither, the text is the input itself.

    Args:
        tokenizer: A Hugging Face tokenizer.
        input_template: Text with one ``{}``.
        apply_chat_template: Use the tokenizer's chat template; excludes ``input_template``.

    Raises:
        UserError: Both are given, the template has not exactly one ``{}``, or the tokenizer has
            no chat template.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        input_template: str | None = None,
        apply_chat_template: bool = False,
    ) -> None:
        if apply_chat_template and input_template is not None:
            raise UserError(
                "data.input_template and data.apply_chat_template exclude each other",
                fix="remove one of them",
            )
        if apply_chat_template and not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template",
                where="data.apply_chat_template",
                fix="use data.input_template, or a model whose tokenizer has a chat template",
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

    def render(self, value: Any, *, where: str) -> str:
        """The text of one input, up to where the answer begins.

        Args:
            value: A string; with a chat template also a list of messages.
            where: Where the input came from, for error messages.

        Raises:
            UserError: The input is not of that kind, or the chat template refuses it.
        """
        if self.is_chat:
            return self._render_chat(self._messages(value, where), where, open_turn=True)
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

    def render_answered(self, value: Any, answer: str, *, where: str) -> str:
        """The text of a conversation that the assistant's turn ``answer`` closes.

        Only with a chat template. Arguments and errors are those of `render`.
        """
        turn = {"role": "assistant", "content": answer}
        return self._render_chat([*self._messages(value, where), turn], where, open_turn=False)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered inputs.

        The tokenizer adds its special tokens, except to a chat template's text, which has them.
        """
        return token_ids(self.tokenizer, texts, add_special_tokens=not self.is_chat)

    def _messages(self, value: Any, where: str) -> list[dict[str, Any]]:
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if not (isinstance(value, list) and value and all(map(_is_message, value))):
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
        return value

    def _render_chat(self, messages: list[dict[str, Any]], where: str, *, open_turn: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_turn
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


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )
