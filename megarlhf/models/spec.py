"""What a Hugging Face directory says about its model: family, Megatron settings, tensor shapes."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from megarlhf.errors import UserError
from megarlhf.models.weights import families
from megarlhf.models.weights.families.common import scalar_head
from megarlhf.models.weights.family import Entry, Family, Tensor
from megarlhf.models.weights.operations import Shape

DEFAULT_SCALAR_HEAD = "score"  # as AutoModelForSequenceClassification names it


@dataclass(frozen=True)
class ModelSpec:
    """A model, known from its configuration alone.

    Attributes:
        path: The Hugging Face directory.
        hf_config: ``config.json``, parsed.
        family: Its family's declaration.
        settings: Megatron's settings, translated.
        scalar_head: Name of the head that gives one number a token (reward models, critics); None
            for a language model.
    """

    path: Path
    hf_config: dict
    family: Family
    settings: dict[str, object]
    scalar_head: str | None = None

    @classmethod
    def read(cls, path: str | Path, *, scalar_head: str | None = None) -> "ModelSpec":
        """Read a Hugging Face directory's ``config.json``.

        Args:
            path: The directory.
            scalar_head: Give the model a scalar head of this name, whatever its own head is. A
                directory of a sequence-classification model has one without being asked.

        Raises:
            UserError: No such file, not a JSON object, an unsupported architecture or setting.
        """
        file = Path(path) / "config.json"
        hf_config = _read_json(file)
        try:
            family = families.of(hf_config, str(file))
            settings = family.translate(hf_config, str(file))
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"config.json has a value of the wrong kind: {error}",
                where=str(file),
                fix="compare it with the one that the model was published with",
            ) from error
        heads, groups = settings["num_attention_heads"], settings["num_query_groups"]
        if heads % groups:
            raise UserError(
                f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})",
                where=str(file),
            )
        if scalar_head is None and hf_config["architectures"][0].endswith(families.SCALAR):
            scalar_head = hf_config.get("value_prefix_head", DEFAULT_SCALAR_HEAD)
            labels = len(hf_config.get("id2label") or ()) or hf_config.get("num_labels", 2)
            if labels != 1:
                raise UserError(
                    f"a classifier of {labels} labels, not a reward model",
                    where=str(file),
                    fix="use a model with num_labels=1",
                )
        if scalar_head is not None:
            settings["tied_embeddings"] = False  # its output layer is no embedding
        return cls(Path(path), hf_config, family, settings, scalar_head)

    @classmethod
    def read_scalar(cls, path: str | Path) -> "ModelSpec":
        """A critic or reward model: with the scalar head it has, or with a new one.

        Raises:
            UserError: See `read`.
        """
        spec = cls.read(path)
        return spec if spec.scalar_head else cls.read(path, scalar_head=DEFAULT_SCALAR_HEAD)

    @property
    def full_config(self) -> dict:
        """``config.json`` with what Hugging Face takes for absent keys."""
        return self.family.fill(self.hf_config)

    @property
    def has_new_head(self) -> bool:
        """Whether a language model's directory is given a scalar head, which it need not contain."""
        is_causal = self.hf_config["architectures"][0].endswith(families.CAUSAL)
        return self.scalar_head is not None and is_causal

    @property
    def export_config(self) -> dict:
        """``config.json`` for this model as it is: of a classifier, if it has a scalar head."""
        if self.scalar_head is None:
            return dict(self.hf_config)
        architecture = self.hf_config["architectures"][0]
        config = {
            **self.hf_config,
            "architectures": [architecture.removesuffix(families.CAUSAL) + families.SCALAR]
            if architecture.endswith(families.CAUSAL)
            else [architecture],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        }
        if self.scalar_head != DEFAULT_SCALAR_HEAD:
            config["value_prefix_head"] = self.scalar_head
        return config

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return int(self.settings["num_layers"])

    @property
    def num_experts(self) -> int:
        """Experts of a layer; 0 for a dense model."""
        return int(self.settings.get("num_moe_experts") or 0)

    def is_mixture(self, layer: int) -> bool:
        """Whether a layer, by its global number, is a mixture of experts."""
        pattern = self.settings.get("moe_layer_freq", 1)  # 1: all of them
        return self.num_experts > 0 and (pattern == 1 or bool(pattern[layer]))

    def has(self, entry: Entry, layer: int) -> bool:
        """Whether a layer, by its global number, has what an entry of a layer declares."""
        return entry.layers is None or (entry.layers == "mixture") == self.is_mixture(layer)

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
        entries = tuple(entry for entry in self.family.entries if entry.exists(self.settings))
        if self.scalar_head is None:
            return entries
        return tuple(
            scalar_head(self.scalar_head) if entry.parameter == "output_layer.weight" else entry
            for entry in entries
        )

    @cached_property
    def tensors(self) -> dict[str, Shape]:
        """Every Hugging Face tensor's shape by name: embedding, then layer by layer, then the head."""
        return {name: tensor.resolve(self.dims) for name, (_, tensor) in self._sources.items()}

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """What a tensor is written in, in a checkpoint of ``dtype``.

        What is not trained stays in float32: rounded, an expert bias would choose other experts.
        """
        return dtype if self._sources[name][0].trained else torch.float32

    @cached_property
    def _sources(self) -> dict[str, tuple[Entry, Tensor]]:
        layered = [entry for entry in self.entries if entry.per_layer]
        single = [entry for entry in self.entries if not entry.per_layer]
        before = [entry for entry in single if entry.parameter.startswith("embedding.")]
        after = [entry for entry in single if entry not in before]
        order = [(entry, 0) for entry in before]
        order += [
            (entry, layer)
            for layer in range(self.num_layers)
            for entry in layered
            if self.has(entry, layer)
        ]
        order += [(entry, 0) for entry in after]
        sources: dict[str, tuple[Entry, Tensor]] = {}
        for entry, layer in order:
            for expert in range(self.num_experts if entry.per_expert else 1):
                for tensor in entry.tensors:
                    name = tensor.name.format(layer=layer, expert=expert)
                    sources[name] = (entry, tensor)
        return sources


def _read_json(file: Path) -> dict:
    if not file.is_file():
        raise UserError(
            "no model here: config.json is missing",
            where=str(file),
            fix="give a Hugging Face model directory",
        )
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"config.json does not parse: {error}", where=str(file)) from None
    if not isinstance(content, dict):
        raise UserError("config.json is not a JSON object", where=str(file))
    return content
