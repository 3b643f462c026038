"""Pairs of answers to one prompt, the chosen one and the rejected, for reward models and DPO."""

from typing import TYPE_CHECKING, Any

from megarlhf.config.schema import PreferenceDataConfig
from megarlhf.data.answers import answer_text
from megarlhf.data.conversations import check_order, is_conversation
from megarlhf.data.loading import input_template, load_examples
from megarlhf.data.records import Example, Sequence
from megarlhf.data.rows import Row, number_of
from megarlhf.data.store import StoredRows
from megarlhf.data.templates import InputTemplate, token_ids
from megarlhf.data.tokenization import Skip
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARGIN = "margin"


def load_preferences(
    config: PreferenceDataConfig, tokenizer: "PreTrainedTokenizerBase", *, held_out: bool = False
) -> StoredRows:
    """Read the rows and make pairs of them; see `PreferenceRows`.

    Raises:
        UserError: See `load_examples`.
    """
    template = input_template(config, tokenizer)
    builder = PreferenceRows(config, template)
    return load_examples(config, template, builder, held_out=held_out)


class PreferenceRows:
    """Makes examples of rows with two answers.

    The prompt's tokens are the same in both sequences; the mask is 1.0 on the answers, which end
    as `answer_text` says. With ``data.prompt_key=null`` and a chat template, chosen and rejected
    are conversations that differ in the last message only; without a template they are whole texts
    (all is the answer). A pair of equal answers says nothing and is skipped.
    """

    def __init__(self, config: PreferenceDataConfig, template: InputTemplate) -> None:
        self._config, self._template = config, template
        optional = (config.prompt_key, config.margin_key)
        self.keys = [config.chosen_key, config.rejected_key, *filter(None, optional)]

    def __call__(self, rows: list[Row]) -> list[Example | Skip]:
        """See `RowBuilder`."""
        template, config = self._template, self._config
        prompts, chosen, rejected = [], [], []
        for original in rows:
            value, row = self._split(original)
            prompt = "" if value is None else template.render(value, where=row.where)
            prompts.append(prompt)
            for texts, key, name in (
                (chosen, config.chosen_key, "chosen"),
                (rejected, config.rejected_key, "rejected"),
            ):
                texts.append(answer_text(template, value, prompt, row, key, name))
        befores = template.tokenize(prompts)
        better = token_ids(template.tokenizer, chosen, add_special_tokens=False)
        worse = token_ids(template.tokenizer, rejected, add_special_tokens=False)
        return [self._example(*parts) for parts in zip(befores, better, worse, rows, strict=True)]

    def _split(self, row: Row) -> tuple[Any, Row]:
        """The prompt (None: there is none) and the row with the answers alone."""
        config = self._config
        if config.prompt_key is not None:
            return row.values[config.prompt_key], row
        if not self._template.is_chat:
            return None, row
        chosen, rejected = (row.values[key] for key in (config.chosen_key, config.rejected_key))
        for name, messages in (("chosen", chosen), ("rejected", rejected)):
            if not is_conversation(messages) or messages[-1]["role"] != "assistant":
                raise UserError(
                    f"{name} must be a conversation that ends with the assistant's turn",
                    where=row.where,
                    fix="correct the row, or set data.prompt_key to where the prompt is",
                )
            check_order(messages, row.where)
        if chosen[:-1] != rejected[:-1]:
            raise UserError(
                "chosen and rejected answer different prompts",
                where=row.where,
                fix="let them differ in the last message only",
            )
        answers = {config.chosen_key: chosen[-1:], config.rejected_key: rejected[-1:]}
        return chosen[:-1], Row({**row.values, **answers}, row.where)

    def _example(
        self, before: list[int], chosen: list[int], rejected: list[int], row: Row
    ) -> Example | Skip:
        if chosen == rejected:
            return Skip("chosen equals rejected")
        for name, after in (("chosen", chosen), ("rejected", rejected)):
            if len(before) + len(after) < 2:
                raise UserError(
                    f"prompt and {name} together are a single token, which nothing predicts",
                    where=row.where,
                    fix="remove the row",
                )
        key = self._config.margin_key
        values = {} if key is None else {MARGIN: number_of(row, key, "margin")}
        sequences = [_sequence(before, after) for after in (chosen, rejected)]
        return Example(sequences, prompt_tokens=len(before), values=values)


def _sequence(before: list[int], after: list[int]) -> Sequence:
    mask = [0.0] * len(before) + [1.0] * len(after)
    mask[0] = 0.0  # nothing predicts the first token
    return Sequence(before + after, mask)
