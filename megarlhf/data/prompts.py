"""The prompts that rollouts sample from: loaded once, streamed in batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megarlhf.config.schema import PromptDataConfig
from megarlhf.data.limits import short_enough
from megarlhf.data.records import Prompt, Sample
from megarlhf.data.sources import Selection, read_rows
from megarlhf.data.stream import ShuffledStream
from megarlhf.data.templates import InputTemplate
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptStream(ShuffledStream[Prompt]):
    """Endless batches of prompts; see `ShuffledStream`."""

    def observe(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Take in the scores of prompts' samples: the order does not depend on them."""


def load_prompts(
    config: PromptDataConfig,
    spec: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    held_out: bool = False,
) -> list[Prompt]:
    """Read a data set and make its rows into prompts.

    Args:
        config: Keys, template and limits.
        spec: What to read, ``config.prompts`` or ``config.eval_prompts``; see `Selection`.
        tokenizer: Tokenizer of the model that answers.
        held_out: It is the latter: take ``config.eval_split``, and its sources one by one.

    Returns:
        The prompts in the order of the rows; ``index`` is the row's number from 0, so dropped rows
        leave gaps.

    Raises:
        UserError: The data cannot be read or lacks a key; an input does not suit the template, has
            no tokens, or has too many (with ``overlong_prompts="error"``); or none is left.
    """
    template = InputTemplate(
        tokenizer,
        input_template=config.input_template,
        apply_chat_template=config.apply_chat_template,
        chat_template=config.tokenizer_chat_template,
    )
    keys = [config.input_key] + ([config.label_key] if config.label_key is not None else [])
    selection = (
        Selection(spec, config.eval_split, max_samples=config.max_samples)
        if held_out
        else Selection(spec, config.split, config.probabilities, config.mixing, config.max_samples)
    )
    rows = read_rows(selection, required_keys=keys)
    texts = [template.render(row.values[config.input_key], where=row.where) for row in rows]
    tokens = template.tokenize(texts)
    for row, ids in zip(rows, tokens, strict=True):
        if not ids:
            raise UserError("the prompt has no tokens", where=row.where, fix="remove the row")
    kept = short_enough(
        rows,
        [len(ids) for ids in tokens],
        limit=config.max_prompt_tokens,
        limit_key="data.max_prompt_tokens",
        overlong=config.overlong_prompts,
        overlong_key="data.overlong_prompts",
    )
    return [
        Prompt(
            index=index,
            text=texts[index],
            token_ids=tuple(tokens[index]),
            label=None if config.label_key is None else rows[index].values[config.label_key],
        )
        for index in kept
    ]
