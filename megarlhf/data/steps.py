"""Answers in steps, each with a label, for process reward models."""

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from megarlhf.config.schema import StepDataConfig
from megarlhf.data.loading import input_template, load_examples
from megarlhf.data.records import Example, Sequence
from megarlhf.data.rows import Row
from megarlhf.data.store import StoredRows
from megarlhf.data.templates import InputTemplate, token_ids
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = "labels"
SIGNS = {"+": 1.0, "-": 0.0}  # as in Math-Shepherd's data


def load_steps(
    config: StepDataConfig, tokenizer: "PreTrainedTokenizerBase", *, held_out: bool = False
) -> StoredRows:
    """Read the rows and make examples of them; see `StepRows`.

    Raises:
        UserError: See `load_examples`; or ``data.step_token`` is not one token.
    """
    template = input_template(config, tokenizer)
    return load_examples(config, template, StepRows(config, template), held_out=held_out)


class _Steps(NamedTuple):
    """The answer of a row: the steps' texts, their labels, and what follows the last step."""

    texts: list[str]
    labels: list[float]
    rest: str


class StepRows:
    """Makes examples of rows with steps.

    Each step's text is tokenized on its own and followed by the step token, at which the model
    judges the step. What a model computes *at* a token belongs to the prediction of the next one
    (see `Sequence`): for a step token at position p, ``loss_mask[p + 1]`` is 1.0 and
    ``fields["labels"][p + 1]`` the probability that the step is right. So there is always a token
    behind the last step token: the text that follows there, or EOS.
    """

    def __init__(self, config: StepDataConfig, template: InputTemplate) -> None:
        self._config, self._template = config, template
        self.keys = [*filter(None, [config.input_key]), config.steps_key, config.label_key]
        self._step_id = step_token_id(config.step_token, template)
        eos = template.tokenizer.eos_token_id
        self._last_id = self._step_id if eos is None else eos

    def __call__(self, rows: list[Row]) -> list[Example]:
        """See `RowBuilder`."""
        answers = [self._steps(row) for row in rows]
        befores = self._template.tokenize([self._prompt(row) for row in rows])
        texts = [[*answer.texts, answer.rest] for answer in answers]
        flat = [text for parts in texts for text in parts]
        tokens = token_ids(self._template.tokenizer, flat, add_special_tokens=False)
        ends = accumulate(map(len, texts))
        return [
            self._example(before, tokens[end - len(parts) : end], answer.labels)
            for before, parts, end, answer in zip(befores, texts, ends, answers, strict=True)
        ]

    def _prompt(self, row: Row) -> str:
        key = self._config.input_key
        return "" if key is None else self._template.render(row.values[key], where=row.where)

    def _steps(self, row: Row) -> _Steps:
        config = self._config
        value, labels = row.values[config.steps_key], row.values[config.label_key]
        if isinstance(value, str):
            *texts, rest = value.split(config.step_token)
        else:
            texts, rest = _listed(value, row), ""
        if not texts:
            raise UserError(
                f"there are no steps: {config.step_token!r} does not occur in {value!r:.200}",
                where=row.where,
                fix="correct the row, data.steps_key or data.step_token",
            )
        if not isinstance(labels, list) or len(labels) != len(texts):
            count = f"{len(labels)}" if isinstance(labels, list) else f"{labels!r:.200}"
            raise UserError(
                f"the labels must be a list, one for each of the {len(texts)} steps, not {count}",
                where=row.where,
                fix="correct the row or data.label_key",
            )
        return _Steps(texts, [_label(label, row) for label in labels], rest)

    def _example(self, before: list[int], parts: list[list[int]], labels: list[float]) -> Example:
        *steps, rest = parts
        ids = list(before)
        places = []
        for step in steps:
            ids += [*step, self._step_id]
            places.append(len(ids))  # the entry behind the step token
        ids += rest or [self._last_id]
        sequence = Sequence(ids, [0.0] * len(ids), {LABELS: [0.0] * len(ids)})
        for place, label in zip(places, labels, strict=True):
            sequence.loss_mask[place] = 1.0
            sequence.fields[LABELS][place] = label
        return Example([sequence], prompt_tokens=len(before))


def step_token_id(token: str, template: InputTemplate) -> int:
    """The id of the step token.

    Raises:
        UserError: The tokenizer makes several tokens of it, or none.
    """
    (ids,) = token_ids(template.tokenizer, [token], add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(
            f"the tokenizer makes {len(ids)} tokens of {token!r}",
            where="data.step_token",
            fix="choose a text that is one token, such as a special token of the tokenizer",
        )
    return ids[0]


def _listed(value: Any, row: Row) -> list[str]:
    if not (isinstance(value, list) and value and all(isinstance(step, str) for step in value)):
        raise UserError(
            f"the steps must be a text or a list of texts, not {value!r:.200}",
            where=row.where,
            fix="correct the row or data.steps_key",
        )
    return value


def _label(value: Any, row: Row) -> float:
    if isinstance(value, str) and value in SIGNS:
        return SIGNS[value]
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise UserError(
        f"a step's label must be true or false, + or -, or a number from 0 to 1, not {value!r:.200}",
        where=row.where,
        fix="correct the row or data.label_key",
    )
