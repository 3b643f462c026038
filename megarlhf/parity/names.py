"""What the compared modules are called (as in Hugging Face's model) and keyed by in ranks' files."""

EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
LOGITS = "lm_head"  # also of a scalar head, whose logits are one value a token


def layer(number: int) -> str:
    """A transformer layer, by its global number."""
    return f"model.layers.{number}"


def modules(num_layers: int) -> list[str]:
    """Every compared module, in the order in which a forward pass reaches it."""
    parts = [
        name
        for number in range(num_layers)
        for name in (layer(number) + ".self_attn", layer(number) + ".mlp", layer(number))
    ]
    return [EMBEDDING, *parts, FINAL_NORM, LOGITS]


def output_key(module: str, micro_batch: int) -> str:
    """A module's output for a rank's n-th micro-batch."""
    return f"output/{module}/{micro_batch}"


def gradient_key(chunk: int, parameter: str) -> str:
    """A parameter's gradient, by Megatron's name in a model chunk."""
    return f"gradient/{chunk}/{parameter}"
