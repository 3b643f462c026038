"""Plain text to go on pre-training with: the loss is on every token."""

from megarlhf.config.schema import SupervisedDataConfig
from megarlhf.data.records import Example, Sequence
from megarlhf.data.rows import Row, text_of
from megarlhf.data.templates import InputTemplate, token_ids
from megarlhf.errors import UserError


class PlainTextRows:
    """Makes examples of rows with one text: the tokenizer's special tokens, the text, EOS."""

    def __init__(self, config: SupervisedDataConfig, template: InputTemplate) -> None:
        self._key, self._tokenizer = config.input_key, template.tokenizer
        self.keys = [self._key]

    def __call__(self, rows: list[Row]) -> list[Example]:
        """See `RowBuilder`."""
        eos = self._tokenizer.eos_token or ""
        texts = [text_of(row, self._key, "input") for row in rows]
        closed = [text if text.endswith(eos) else text + eos for text in texts]
        examples = []
        for ids, row in zip(
            token_ids(self._tokenizer, closed, add_special_tokens=True), rows, strict=True
        ):
            if len(ids) < 2:
                raise UserError(
                    "the text is a single token, which nothing predicts",
                    where=row.where,
                    fix="remove the row",
                )
            mask = [0.0] + [1.0] * (len(ids) - 1)
            examples.append(Example([Sequence(ids, mask)], prompt_tokens=0))
        return examples
