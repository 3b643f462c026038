"""Single answers, each desirable or not, for KTO."""

from typing import TYPE_CHECKING

from megarlhf.config.schema import UnpairedDataConfig
from megarlhf.data.answers import answer_text, answered
from megarlhf.data.loading import input_template, load_examples
from megarlhf.data.records import Example
from megarlhf.data.rows import Row
from megarlhf.data.store import StoredRows
from megarlhf.data.templates import InputTemplate, token_ids
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DESIRABLE = "desirable"


def load_unpaired(
    config: UnpairedDataConfig, tokenizer: "PreTrainedTokenizerBase", *, held_out: bool = False
) -> StoredRows:
    """Read the rows and make examples of them; see `UnpairedRows`.

    Raises:
        UserError: See `load_examples`.
    """
    template = input_template(config, tokenizer)
    return load_examples(config, template, UnpairedRows(config, template), held_out=held_out)


class UnpairedRows:
    """Makes examples of rows with a prompt, an answer and whether that is desirable."""

    def __init__(self, config: UnpairedDataConfig, template: InputTemplate) -> None:
        self._config, self._template = config, template
        self.keys = [config.input_key, config.output_key, config.label_key]

    def __call__(self, rows: list[Row]) -> list[Example]:
        """See `RowBuilder`."""
        template, config = self._template, self._config
        labels = [_label(row, config.label_key) for row in rows]
        prompts = [template.render(row.values[config.input_key], where=row.where) for row in rows]
        answers = [
            answer_text(
                template, row.values[config.input_key], prompt, row, config.output_key, "output"
            )
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        befores = template.tokenize(prompts)
        afters = token_ids(template.tokenizer, answers, add_special_tokens=False)
        examples = [
            answered(before, after, row)
            for before, after, row in zip(befores, afters, rows, strict=True)
        ]
        for example, label in zip(examples, labels, strict=True):
            example.values[DESIRABLE] = label
        return examples


def _label(row: Row, key: str) -> float:
    value = row.values[key]
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise UserError(
            f"the label must be true or false, not {value!r:.200}",
            where=row.where,
            fix="correct the row or data.label_key",
        )
    return float(value)
