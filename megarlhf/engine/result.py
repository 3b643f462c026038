"""What a run leaves at its end: the model or, of a frozen one, the adapters."""

from pathlib import Path

import torch

from megarlhf.engine.model_engine import ModelEngine
from megarlhf.models.lora.saving import save_adapters
from megarlhf.models.weights.export import export_huggingface


def write_result(engine: ModelEngine, directory: Path, dtype: torch.dtype) -> None:
    """Write what was trained, in Hugging Face's or PEFT's format. Collective over the ranks.

    Args:
        engine: The trained model.
        directory: Where to; replaced if it exists.
        dtype: Of the written tensors.

    Raises:
        UserError: The disk is full.
    """
    place = engine.topology, engine.rank, engine.chunks, directory, dtype
    if engine.adapters is None:
        export_huggingface(engine.spec, *place)
    else:
        save_adapters(engine.adapters.spec, *place)
