"""One file a model family, holding only data. `of` finds the family of a Hugging Face config."""

from megarlhf.errors import UserError
from megarlhf.models.weights.families import deepseek, gemma, llama, mixture, qwen
from megarlhf.models.weights.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.LLAMA,
    llama.MISTRAL,
    qwen.QWEN2,
    qwen.QWEN3,
    mixture.MIXTRAL,
    mixture.QWEN2_MOE,
    mixture.QWEN3_MOE,
    deepseek.V2,
    deepseek.V3,
    gemma.GEMMA2,
)


CAUSAL, SCALAR = "ForCausalLM", "ForSequenceClassification"  # endings of architecture names


def of(hf_config: dict, where: str) -> Family:
    """The family that a parsed ``config.json`` belongs to, whatever head the model has.

    Raises:
        UserError: The architecture is not supported; the supported ones are listed.
    """
    if hf_config.get("quantization_config"):
        raise UserError(
            "the weights are quantized, which cannot be trained",
            where=where,
            fix="convert them to bfloat16 first and remove quantization_config",
        )
    names = hf_config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        raise _unnamed(hf_config.get("model_type"), where)
    causal = name.removesuffix(SCALAR) + CAUSAL if name.endswith(SCALAR) else name
    for family in FAMILIES:
        if causal in family.architectures:
            family.check(hf_config, where)
            return family
    known = ", ".join(f"{family.architectures[0]} ({family.about})" for family in FAMILIES)
    raise UserError(
        f"architecture {name} is not supported",
        where=where,
        fix=f"use one of {known}; or add a family as docs/adding-a-model.md shows",
    )


def _unnamed(model_type: str | None, where: str) -> UserError:
    """For a configuration that says at most which kind of body the model has, not which head."""
    meant = [
        name
        for family in FAMILIES
        for name in family.architectures
        if name.lower().removesuffix(CAUSAL.lower()) == (model_type or "").replace("_", "")
    ]
    example = meant[0] if meant else FAMILIES[0].architectures[0]
    return UserError(
        "no architecture is named"
        + (f", only the model_type {model_type!r}" if model_type is not None else ""),
        where=where,
        fix=f'add the one that the weights belong to, for example "architectures": ["{example}"]',
    )
