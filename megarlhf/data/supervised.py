"""Rows for supervised training: input and output, with the loss on the output's tokens only."""

from typing import TYPE_CHECKING, Any

from megarlhf.config.schema import SupervisedDataConfig
from megarlhf.data.answers import answer_text, answered
from megarlhf.data.loading import input_template, load_examples
from megarlhf.data.multiturn import ConversationRows
from megarlhf.data.plain_text import PlainTextRows
from megarlhf.data.records import Example
from megarlhf.data.rows import Row, number_of
from megarlhf.data.store import StoredRows
from megarlhf.data.templates import InputTemplate, token_ids
from megarlhf.data.tokenization import RowBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_supervised(
    config: SupervisedDataConfig, tokenizer: "PreTrainedTokenizerBase", *, held_out: bool = False
) -> StoredRows:
    """Read the rows and make examples of them.

    Returns:
        An example of one sequence for each row, in their order. ``loss_mask`` is 1.0 on what is
        learned: outputs (`InputOutputRows`), turns (`ConversationRows`) or everything (`PlainTextRows`).

    Raises:
        UserError: See `load_examples`.
    """
    template = input_template(config, tokenizer)
    return load_examples(config, template, _builder(config, template), held_out=held_out)


def _builder(config: SupervisedDataConfig, template: InputTemplate) -> RowBuilder:
    if config.pretrain_mode:
        return PlainTextRows(config, template)
    if config.output_key is None:
        return ConversationRows(config, template)
    return InputOutputRows(config, template, config.output_key)


class InputOutputRows:
    """Makes examples of rows with an input and an output.

    The input's text and the output's are tokenized apart and joined, so the loss begins exactly
    where a sampler would begin. For the output's end see `answer_text`.

    With ``data.reward_key`` the input says how good the output is (conditional SFT), so that later
    a high reward can be asked for.
    """

    def __init__(
        self, config: SupervisedDataConfig, template: InputTemplate, output_key: str
    ) -> None:
        self._config, self._template, self._output_key = config, template, output_key
        reward = [] if config.reward_key is None else [config.reward_key]
        self.keys = [config.input_key, output_key, *reward]

    def __call__(self, rows: list[Row]) -> list[Example]:
        """See `RowBuilder`."""
        template = self._template
        values = [self._input(row) for row in rows]
        inputs = [
            template.render(value, where=row.where) for value, row in zip(values, rows, strict=True)
        ]
        outputs = [
            answer_text(template, value, text, row, self._output_key, "output")
            for value, text, row in zip(values, inputs, rows, strict=True)
        ]
        befores = template.tokenize(inputs)
        afters = token_ids(template.tokenizer, outputs, add_special_tokens=False)
        return [
            answered(before, after, row)
            for before, after, row in zip(befores, afters, rows, strict=True)
        ]

    def _input(self, row: Row) -> Any:
        value, key = row.values[self._config.input_key], self._config.reward_key
        if key is None:
            return value
        reward = f"{number_of(row, key, 'reward'):.2f}"
        return _conditioned(value, reward, self._config.reward_template)


def _conditioned(value: Any, reward: str, template: str) -> Any:
    """The input, or the last message of a conversation, with the reward written into it."""
    if isinstance(value, str):
        before, after = template.replace("{reward}", reward).split("{input}")
        return f"{before}{value}{after}"
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        last = {**value[-1], "content": _conditioned(value[-1].get("content"), reward, template)}
        return [*value[:-1], last]
    return value  # the template says what is wrong with it
