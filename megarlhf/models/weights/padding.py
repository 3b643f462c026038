"""The token that inputs of a model with a scalar head are padded with.

Hugging Face's sequence classifiers read the score at the last token that is not ``pad_token_id``. The
score is trained at a sequence's last token, mostly EOS, with which many tokenizers also pad: then they
would read it one token early, without a word. So such a model gets another pad token.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megarlhf.models.weights.row_files import full_disk_is_an_error

CONFIG, FULL, OLD = "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"

logger = logging.getLogger(__name__)


def settle_padding(directory: Path, config: dict[str, Any]) -> int | None:
    """Have a directory's tokenizer pad with a token that no sequence ends with.

    The tokenizer's own pad token, if it is such a one; else a special token: one that is called pad,
    the unknown or the first token, any other that the chat template does not write.

    Args:
        directory: Of a model that is being written; its tokenizer's files are there.
        config: Its ``config.json``.

    Returns:
        Its id, for ``pad_token_id``; None where there is none, so that Hugging Face takes one sequence
        at a time, and reads the score at its end.

    Raises:
        UserError: The disk is full.
    """
    tokenizer = _read(directory / CONFIG)
    ids = _special_tokens(directory, tokenizer)
    ending_ids = _ids(config.get("eos_token_id"))
    template = _template(directory, tokenizer)
    endings = {_text(tokenizer.get("eos_token"))}
    endings |= {text for text, number in ids.items() if number in ending_ids or text in template}
    own = _text(tokenizer.get("pad_token"))
    if not ids:
        pad = config.get("pad_token_id")
        return None if pad in ending_ids else pad  # there is no tokenizer to ask
    for text in _candidates(tokenizer, ids):
        if text in ids and text not in endings and ids[text] < config.get("vocab_size", 0):
            if text != own:
                _pad_with(directory, text)
                logger.warning(
                    "the tokenizer pads with %r in place of %r, with which sequences may end: "
                    "the score is read at the last token that is no padding",
                    text,
                    own or None,
                )
            return ids[text]
    logger.warning("no special token is left to pad with: score one sequence at a time")
    return None


def _candidates(tokenizer: dict[str, Any], ids: dict[str, int]) -> Iterator[str]:
    yield _text(tokenizer.get("pad_token"))
    yield from (text for text in ids if "pad" in text.lower())
    yield from (_text(tokenizer.get(name)) for name in ("unk_token", "bos_token"))
    yield from sorted(ids, key=lambda text: ids[text])


def _special_tokens(directory: Path, tokenizer: dict[str, Any]) -> dict[str, int]:
    """Text to id."""
    added = _read(directory / FULL).get("added_tokens") or [
        {**token, "id": int(number)}
        for number, token in (tokenizer.get("added_tokens_decoder") or {}).items()
    ]
    return {token["content"]: token["id"] for token in added if token.get("special")}


def _ids(eos: int | list[int] | None) -> set[int]:
    return set(eos) if isinstance(eos, list) else {eos} - {None}


def _template(directory: Path, tokenizer: dict[str, Any]) -> str:
    file = directory / "chat_template.jinja"
    return file.read_text() if file.is_file() else json.dumps(tokenizer.get("chat_template"))


def _pad_with(directory: Path, text: str) -> None:
    for name in (CONFIG, OLD):
        file = directory / name
        if file.is_file() or name == CONFIG:
            content = {**_read(file), "pad_token": text}
            with full_disk_is_an_error(directory):
                file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _text(token: Any) -> str:
    """Of a special token as ``tokenizer_config.json`` has it."""
    return (token.get("content") if isinstance(token, dict) else token) or ""


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}
