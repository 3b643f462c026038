"""What ``config.json`` says about rotary position embedding, and which of it is supported."""

from collections.abc import Mapping
from typing import Any

from megarlhf.errors import UserError

# By kind, the numbers that it cannot do without.
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


_WHY_NOT = {
    "dynamic": "its angles change with the length of the sequence, also those of tokens sampled before",
    "longrope": "its angles change with the length of the sequence, also those of tokens sampled before",
}


def _key(hf_config: Mapping[str, Any]) -> str:
    """Where the numbers are; the old key comes first, as it does for Hugging Face."""
    return "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"


def parameters(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Kind, base and the kind's numbers, from the new (``rope_parameters``) or the old keys."""
    given = hf_config.get(_key(hf_config)) or {}
    return {
        "partial_rotary_factor": hf_config.get("partial_rotary_factor"),
        **given,
        "rope_type": given.get("rope_type", given.get("type", "default")),
        "rope_theta": given.get("rope_theta", hf_config.get("rope_theta", 10000.0)),
    }


def check(hf_config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not computed as Hugging Face does.

    Raises:
        UserError: Another kind, or one of its numbers is missing or none; other numbers for other
            layers or for a part of each head.
    """
    key = _key(hf_config)
    nested = [name for name, value in (hf_config.get(key) or {}).items() if isinstance(value, dict)]
    if nested:
        raise UserError(
            f"{key} differs between layers ({', '.join(nested)}), which is not supported",
            where=where,
        )
    found = parameters(hf_config)
    kind = found["rope_type"]
    if kind not in _NEEDED:
        why = f": {_WHY_NOT[kind]}" if kind in _WHY_NOT else ""
        raise UserError(
            f"{key} of type {kind!r} is not supported{why}",
            where=where,
            fix=f"supported: {', '.join(_NEEDED)}; without {key} the model has its first context",
        )
    if found["partial_rotary_factor"] not in (None, 1):
        raise UserError(
            f"partial_rotary_factor={found['partial_rotary_factor']!r} is not supported",
            where=where,
            fix="supported: 1.0, the whole head",
        )
    for name in (*_NEEDED[kind], "rope_theta"):
        if not isinstance(found.get(name), int | float) or found[name] <= 0:
            raise UserError(
                f"{key} of type {kind!r} needs a positive {name}, got {found.get(name)!r}",
                where=where,
            )
    if kind != "default" and "model_type" not in hf_config:
        raise UserError(f"the key model_type is missing, which {key} needs", where=where)
