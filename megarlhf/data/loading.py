"""From the settings of an offline method's data to its tokenized rows."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megarlhf.config.schema import RowDataConfig
from megarlhf.data.cache import cached, fingerprint
from megarlhf.data.limits import Limit
from megarlhf.data.sources import Selection
from megarlhf.data.store import StoredRows, StoreInfo
from megarlhf.data.templates import InputTemplate
from megarlhf.data.tokenization import (
    PieceMaker,
    RowBuilder,
    check_outcome,
    tokenize_to,
)
from megarlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Settings that do not change what becomes of a row; the sources are identified by their contents.
NOT_IN_FINGERPRINT = frozenset(
    {"train", "eval", "split", "eval_split", "probabilities", "mixing", "max_samples"}
    | {"shuffle", "workers", "cache_dir"}
)


def input_template(config: RowDataConfig, tokenizer: "PreTrainedTokenizerBase") -> InputTemplate:
    """The template that the settings ask for."""
    return InputTemplate(
        tokenizer,
        input_template=config.input_template,
        apply_chat_template=config.apply_chat_template,
        chat_template=config.tokenizer_chat_template,
    )


def load_examples(
    config: RowDataConfig, template: InputTemplate, builder: RowBuilder, *, held_out: bool
) -> StoredRows:
    """Read and tokenize a data set, or find it in the cache.

    Args:
        config: The settings.
        template: `input_template` of them.
        builder: Makes examples of rows.
        held_out: Read the rows for evaluation: ``config.eval``, or ``config.eval_split`` of
            ``config.train``.

    Raises:
        UserError: The data cannot be read or lacks a key; a row is wrong, or too long (with
            ``overlong_rows="error"``); or none is left.
    """
    import pyarrow

    selection = held_out_rows(config) if held_out else training_rows(config)
    limit = Limit(config.max_tokens, config.overlong_rows)
    make = PieceMaker(builder, limit)

    def tokenize(sink: Any) -> StoreInfo:
        return tokenize_to(sink, selection, make, config.workers)

    if config.cache_dir is None:
        stream = pyarrow.BufferOutputStream()
        info = tokenize(stream)
        file = stream.getvalue()
    else:
        name = _fingerprint(config, selection, template, builder)
        file, info = cached(Path(config.cache_dir), name, tokenize)
    check_outcome(info, selection, limit)
    return StoredRows(file, info)


def _fingerprint(
    config: RowDataConfig, selection: Selection, template: InputTemplate, builder: RowBuilder
) -> str:
    settings = {
        key: value for key, value in asdict(config).items() if key not in NOT_IN_FINGERPRINT
    }
    parts = {
        "rows": selection.identity(),
        "builder": type(builder).__name__,
        "settings": settings,
        "chat_template": template.chat_template or template.tokenizer.chat_template,
    }
    return fingerprint(parts, template.tokenizer)


def training_rows(config: RowDataConfig) -> Selection:
    """The rows to train on."""
    return Selection(
        config.train, config.split, config.probabilities, config.mixing, config.max_samples
    )


def held_out_rows(config: RowDataConfig) -> Selection:
    """The rows to evaluate on; mixed as the training rows if they come from the same sources.

    Raises:
        UserError: The settings name none.
    """
    if config.eval is not None:
        return Selection(config.eval, config.eval_split, max_samples=config.max_samples)
    if config.eval_split is None:
        raise UserError(
            "there are no rows to evaluate on",
            where="data.eval",
            fix="set data.eval, or data.eval_split to a split of data.train",
        )
    return Selection(
        config.train, config.eval_split, config.probabilities, config.mixing, config.max_samples
    )
