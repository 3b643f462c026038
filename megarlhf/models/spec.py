"""What a Hugging Face directory says about its model: family, Megatron settings, tensor shapes."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megarlhf.errors import UserError
from megarlhf.models.weights import families
from megarlhf.models.weights.family import Entry, Family
from megarlhf.models.weights.operations import Shape


@dataclass(frozen=True)
class ModelSpec:
    """A model, known from its configuration alone.

    Attributes:
        path: The Hugging Face directory.
        hf_config: ``config.json``, parsed.
        family: Its family's declaration.
        settings: Megatron's settings, translated.
    """

    path: Path
    hf_config: dict
    family: Family
    settings: dict[str, object]

    @classmethod
    def read(cls, path: str | Path) -> "ModelSpec":
        """Read a Hugging Face directory's ``config.json``.

        Raises:
            UserError: No such file, not JSON, an unsupported architecture or setting.
        """
        file = Path(path) / "config.json"
        if not file.is_file():
            raise UserError(
                "no model here: config.json is missing",
                where=str(file),
                fix="give a Hugging Face model directory",
            )
        try:
            hf_config = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"config.json does not parse: {error}", where=str(file)) from None
        family = families.of(hf_config, str(file))
        return cls(Path(path), hf_config, family, family.translate(hf_config, str(file)))

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return int(self.settings["num_layers"])

    @property
    def num_experts(self) -> int:
        """Experts of a layer; 0 for a dense model."""
        return int(self.settings.get("num_moe_experts") or 0)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size without padding."""
        return int(self.settings["vocab_size"])

    @property
    def tied(self) -> bool:
        """Whether input and output embeddings are one tensor."""
        return bool(self.settings["tied_embeddings"])

    @cached_property
    def dims(self) -> dict[str, int]:
        """The family's dimension names, in numbers."""
        return self.family.resolve_dims(self.settings)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The family's entries that this model has."""
        return tuple(
            entry
            for entry in self.family.entries
            if entry.only_if is None or self.settings[entry.only_if[0]] == entry.only_if[1]
        )

    @cached_property
    def tensors(self) -> dict[str, Shape]:
        """Every Hugging Face tensor's shape by name: embedding, then layer by layer, then the head."""
        layered = [entry for entry in self.entries if entry.per_layer]
        single = [entry for entry in self.entries if not entry.per_layer]
        before = [entry for entry in single if entry.parameter.startswith("embedding.")]
        after = [entry for entry in single if entry not in before]
        order = [(entry, 0) for entry in before]
        order += [(entry, layer) for layer in range(self.num_layers) for entry in layered]
        order += [(entry, 0) for entry in after]
        shapes: dict[str, Shape] = {}
        for entry, layer in order:
            for expert in range(self.num_experts if entry.per_expert else 1):
                for tensor in entry.tensors:
                    name = tensor.name.format(layer=layer, expert=expert)
                    shapes[name] = tensor.resolve(self.dims)
        return shapes
