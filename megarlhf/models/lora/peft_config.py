"""``adapter_config.json``, as PEFT writes and reads it."""

import json
from pathlib import Path
from typing import Any

from megarlhf.errors import UserError
from megarlhf.models.lora.adapter import PREFIX, Adapter, AdapterSpec, module_name
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.huggingface_files import HuggingFaceFiles
from megarlhf.models.weights.row_files import full_disk_is_an_error

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CLASSIFIER_HEADS = ("classifier", "score")  # PEFT's for the task SEQ_CLS

# What other adapters may have and ours have not: the values that are the same as none.
_NONE = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_qalora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "use_bdlora": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    # The others (PiSSA, OLoRA, CorDA, LoftQ, ...) change the base too.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


def config_of(spec: AdapterSpec) -> dict[str, Any]:
    """What PEFT is to find."""
    adapter, head = spec.adapter, spec.scalar_head
    alpha = adapter.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "base_model_name_or_path": str(spec.path),
        "r": adapter.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "target_modules": sorted(adapter.targets),
        "modules_to_save": None if head is None else [head],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def write_config(spec: AdapterSpec, directory: Path) -> None:
    """Write the file."""
    with full_disk_is_an_error(directory):
        (directory / CONFIG).write_text(json.dumps(config_of(spec), indent=2) + "\n")


def read(directory: Path, spec: ModelSpec) -> AdapterSpec:
    """The adapters in a directory, as adapters of a model.

    Raises:
        UserError: The files are not there, are of another method or do not belong to such a model.
    """
    config = _read_config(directory / CONFIG)
    files = HuggingFaceFiles(directory)
    suffix = ".lora_A.weight"
    targets = {
        module_name(name.removesuffix(suffix)) for name in files.tensors if name.endswith(suffix)
    }
    adapter = Adapter(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        targets=tuple(sorted(targets)),
        dropout=float(config.get("lora_dropout") or 0.0),
        rslora=bool(config.get("use_rslora")),
    )
    head = head_of(directory)
    if head != spec.scalar_head:
        raise UserError(
            f"these adapters are for a model whose head is {head or 'the vocabulary'}, not "
            f"{spec.scalar_head or 'the vocabulary'}",
            where=str(directory / CONFIG),
            fix="give adapters of the same kind of model: reward models have a head of their own",
        )
    try:
        found = AdapterSpec.of(spec, adapter)
    except UserError as error:
        raise UserError(
            f"adapters for another model: {error.what}",
            where=str(directory),
            fix=f"give adapters that were trained for {spec.path}",
        ) from None
    _check_tensors(found, files)
    return found


def head_of(directory: Path) -> str | None:
    """Name of the scalar head that was trained with adapters; None where there is none.

    PEFT names both that a classifier may have, ``classifier`` and ``score``, and stores the one it has.

    Raises:
        UserError: See `read`.
    """
    named = dict.fromkeys(_read_config(directory / CONFIG).get("modules_to_save") or ())
    stored = HuggingFaceFiles(directory).tensors
    saved = [module for module in named if f"{PREFIX}{module}.weight" in stored]
    if len(saved) > 1 or not {*named} <= {*saved, *CLASSIFIER_HEADS}:
        raise UserError(
            f"these adapters come with trained modules: {', '.join(named)}",
            where=str(directory / CONFIG),
            fix="only a reward model's head is supported",
        )
    return (saved or [*named] or [None])[-1]


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(
            f"no adapters here: {CONFIG} is missing",
            where=str(file),
            fix="give a directory that PEFT or a run with lora.rank wrote",
        )
    try:
        config = json.loads(file.read_text())
        if not (int(config["r"]) > 0 and float(config["lora_alpha"]) > 0):
            raise ValueError("r and lora_alpha must be greater than 0")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"it does not parse: {error!r}", where=str(file)) from None
    for key, none in _NONE.items():
        if key in config and config[key] not in none:
            raise UserError(
                f"{key}={config[key]!r} is not supported",
                where=str(file),
                fix=f"use plain LoRA adapters: {key}={none[0]!r}",
            )
    return config


def _check_tensors(spec: AdapterSpec, files: HuggingFaceFiles) -> None:
    for name, shape in spec.tensors.items():
        if name not in files.tensors:
            raise UserError(
                f"the tensor {name} is missing",
                where=str(files.directory),
                fix=f"give adapters that were trained for {spec.path}, in every layer",
            )
        if files.tensors[name].shape != shape:
            raise UserError(
                f"the tensor {name} has shape {files.tensors[name].shape}, the model wants {shape}",
                where=files.where(name),
                fix=f"give adapters that were trained for {spec.path}",
            )
    unknown = [name for name in files.tensors if name not in spec.tensors]
    if unknown:
        raise UserError(
            f"the tensor {unknown[0].removeprefix(PREFIX)} is not of the linears of {spec.path}",
            where=files.where(unknown[0]),
            fix="give adapters of this project or of PEFT with one A and one B for each linear",
        )
