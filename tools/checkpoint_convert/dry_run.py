"""A model's shapes and dtypes from its configuration, whether its weights are there or not."""

from pathlib import Path

import torch

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.safetensors_format import DTYPES

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


def shapes_of(directory: Path) -> tuple[ModelSpec, dict[str, torch.dtype]]:
    """The model, and its tensors' dtypes as ``config.json`` has them.

    Raises:
        UserError: No configuration, or one of a model that is not supported.
    """
    spec = ModelSpec.read(directory)
    named = spec.hf_config.get("dtype", spec.hf_config.get("torch_dtype"))
    dtype = _DTYPES.get(str(named), torch.bfloat16)
    return spec, {name: spec.dtype_of(name, dtype) for name in spec.tensors}
