"""The adapters that a configuration asks for."""

from dataclasses import replace
from pathlib import Path

from megarlhf.config.schema import LoraConfig
from megarlhf.models.lora import base_print, peft_config
from megarlhf.models.lora.adapter import Adapter, AdapterSpec
from megarlhf.models.lora.attach import Adapters, check_layout
from megarlhf.models.lora.quantized import check_quantizable
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights import fingerprint
from megarlhf.parallel.topology import Topology


def adapters_of(
    config: LoraConfig, spec: ModelSpec, topology: Topology, seed: int
) -> Adapters | None:
    """What ``lora`` says of a model; None where the whole model is trained.

    Raises:
        UserError: The adapters in files are damaged or for another model, a target is no linear of
            the model, or a pipeline stage has none.
    """
    if not config.is_on:
        return None
    if config.path is not None:
        found = peft_config.read(Path(config.path), spec)
        if fingerprint.read(spec.path) is not None:  # else it takes reading all of the base: later
            base_print.check(Path(config.path), spec)
        found = replace(found, adapter=replace(found.adapter, dropout=config.dropout))
    else:
        wanted = Adapter(
            config.rank, config.alpha, config.target_modules, config.dropout, config.rslora
        )
        found = AdapterSpec.of(spec, wanted)
    check_layout(found, topology)
    if config.base == "nf4":
        check_quantizable(spec, topology, double=config.double_quant)
    start = None if config.path is None else Path(config.path)
    return Adapters(found, seed, start, config.base, config.double_quant)
