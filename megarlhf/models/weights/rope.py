"""What ``config.json`` says about rotary position embedding, and which of it is supported."""

from collections.abc import Mapping
from typing import Any

from megarlhf.errors import UserError

# By kind, the numbers that it cannot do without. "dynamic" and "longrope" are missing: their angles
# depend on the length of the whole sequence, so that a prompt's would change while it is answered.
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


def parameters(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Kind, base and the kind's numbers, from the new (``rope_parameters``) or the old keys."""
    given = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    return {
        **given,
        "rope_type": given.get("rope_type", given.get("type", "default")),
        "rope_theta": given.get("rope_theta", hf_config.get("rope_theta", 10000.0)),
    }


def check(hf_config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not computed as Hugging Face does.

    Raises:
        UserError: Another kind, or one of its numbers is missing or none.
    """
    key = "rope_parameters" if hf_config.get("rope_parameters") else "rope_scaling"
    found = parameters(hf_config)
    kind = found["rope_type"]
    if kind not in _NEEDED:
        raise UserError(
            f"{key} of type {kind!r} is not supported",
            where=where,
            fix=f"supported: {', '.join(_NEEDED)}; without {key} the model has its first context",
        )
    for name in (*_NEEDED[kind], "rope_theta"):
        if not isinstance(found.get(name), int | float) or found[name] <= 0:
            raise UserError(
                f"{key} of type {kind!r} needs a positive {name}, got {found.get(name)!r}",
                where=where,
            )
    if kind != "default" and "model_type" not in hf_config:
        raise UserError(f"the key model_type is missing, which {key} needs", where=where)
