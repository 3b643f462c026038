"""One file a model family, holding only data. `of` finds the family of a Hugging Face config."""

from megarlhf.errors import UserError
from megarlhf.models.weights.families import deepseek, llama, mixture, qwen
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
)


CAUSAL, SCALAR = "ForCausalLM", "ForSequenceClassification"  # endings of architecture names


def of(hf_config: dict, where: str) -> Family:
    """The family that a parsed ``config.json`` belongs to, whatever head the model has.

    Raises:
        UserError: The architecture is not supported; the supported ones are listed.
    """
    names = hf_config.get("architectures") or ["(none named)"]
    if hf_config.get("quantization_config"):
        raise UserError(
            "the weights are quantized, which cannot be trained",
            where=where,
            fix="convert them to bfloat16 first and remove quantization_config",
        )
    causal = names[0].removesuffix(SCALAR) + CAUSAL if names[0].endswith(SCALAR) else names[0]
    for family in FAMILIES:
        if causal in family.architectures:
            family.check(hf_config, where)
            return family
    known = sorted(name for family in FAMILIES for name in family.architectures)
    raise UserError(
        f"architecture {names[0]} is not supported",
        where=where,
        fix=f"use one of {', '.join(known)}, or add a family as docs/contributing.md shows",
    )
