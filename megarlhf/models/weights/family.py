"""What a model family declares: its configuration's translation and its tensors' places."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megarlhf.errors import UserError
from megarlhf.models.weights import rope
from megarlhf.models.weights.operations import Operation, Shape

Dims = Mapping[str, int]  # the letters used in tensor shapes, resolved for one model


@dataclass(frozen=True)
class Tensor:
    """A Hugging Face tensor: its name (with ``{layer}``, ``{expert}``) and shape in dimension names."""

    name: str
    shape: str

    def resolve(self, dims: Dims) -> Shape:
        """The shape in numbers."""
        return tuple(dims[letter] for letter in self.shape.split())


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    Attributes:
        parameter: Megatron's name with ``{layer}`` and, for an expert's parameter, ``{expert}``.
        operation: How the tensors make it up; a function of the dimensions where it needs them.
        tensors: The sources, in the operation's order.
        only_if: The entry exists where this Megatron setting has this value.
        unless: And not where this one has this value.
        layers: ``dense`` or ``mixture``: only layers of that kind have it; None: all.
        trained: False where a checkpoint's tensor is kept as it is: it gets no gradient, and is
            written in float32 whatever the others are written in.
    """

    parameter: str
    operation: Callable[[Dims], Operation]
    tensors: tuple[Tensor, ...]
    only_if: tuple[str, object] | None = None
    unless: tuple[str, object] | None = None
    layers: Literal["dense", "mixture"] | None = None
    trained: bool = True

    def exists(self, settings: Mapping[str, object]) -> bool:
        """Whether a model of these Megatron settings has it."""
        wanted = self.only_if is None or settings[self.only_if[0]] == self.only_if[1]
        return wanted and (self.unless is None or settings[self.unless[0]] != self.unless[1])

    @property
    def per_layer(self) -> bool:
        """Whether there is one for every transformer layer."""
        return "{layer}" in self.parameter

    @property
    def per_expert(self) -> bool:
        """Whether there is one for every expert of a layer."""
        return "{expert}" in self.parameter


@dataclass(frozen=True)
class Setting:
    """Where one Megatron setting comes from: a key of ``config.json``, with a default if absent.

    A default that is a string names another key of ``config.json`` whose value is taken instead.
    Without a default the key must be there, unless it is ``optional`` (the setting is then None).
    """

    key: str
    default: object = None
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """A model family as data.

    Attributes:
        architectures: Values of ``architectures[0]`` that belong to it.
        about: What it has, in a few words, for whoever looks for a family like theirs.
        settings: Megatron setting by name (of `TransformerConfig` or, for those in `build`, GPTModel).
        constants: Megatron settings that are the same for every model of the family.
        dims: Dimension name to the product of Megatron settings it is; a tuple of some stands for
            their sum. There is no dimension where one of them is None.
        entries: Every parameter.
        refuse: ``config.json`` key to the values that are supported; others are refused.
        defaults: What Hugging Face takes for a key that is absent, where no `Setting` says it.
        derived: Megatron settings that are a function of the whole ``config.json``, of which they
            see the keys that are not null.
    """

    architectures: tuple[str, ...]
    about: str
    settings: Mapping[str, Setting]
    constants: Mapping[str, object]
    dims: Mapping[str, tuple[str | tuple[str, ...], ...]]
    entries: tuple[Entry, ...]
    refuse: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Mapping[str, Any]], object]] = field(default_factory=dict)

    def fill(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
        """A parsed ``config.json`` with the defaults of absent keys."""
        return {**self.defaults, **hf_config}

    def check(self, hf_config: Mapping[str, Any], where: str) -> None:
        """Refuse a configuration that the family does not compute as Hugging Face does.

        Raises:
            UserError: Names the key, its value and what is supported.
        """
        for key, supported in self.refuse.items():
            value = hf_config.get(key, supported[0])
            if value not in supported:
                raise UserError(
                    f"{key}={value!r} is not supported for {self.architectures[0]}",
                    where=where,
                    fix=f"supported: {', '.join(map(repr, supported))}",
                )
        rope.check(self.fill(hf_config), where)
        _check_layer_types(hf_config, where)

    def translate(self, hf_config: Mapping[str, Any], where: str) -> dict[str, object]:
        """Megatron's settings for a parsed ``config.json``.

        Raises:
            UserError: A needed key is absent, or not of the kind that it has to be.
        """
        hf_config = self.fill(hf_config)
        values: dict[str, object] = dict(self.constants)
        for name, setting in self.settings.items():
            value = hf_config.get(setting.key)
            if value is None and isinstance(setting.default, str):
                value = hf_config.get(setting.default)
            elif value is None:
                value = setting.default
            if value is None and not setting.optional:
                raise UserError(f"the key {setting.key} is missing", where=where)
            values[name] = value
        self._check_kinds(values, where)
        given = {key: value for key, value in hf_config.items() if value is not None}
        for name, derive in self.derived.items():
            try:
                values[name] = derive(given)
            except KeyError as error:
                raise UserError(f"the key {error.args[0]} is missing", where=where) from None
        if values.get("kv_channels") is None:
            values["kv_channels"] = values["hidden_size"] // values["num_attention_heads"]
        return values

    def _check_kinds(self, values: Mapping[str, object], where: str) -> None:
        """Sizes are positive, and what has a default is of its kind."""
        in_shapes = {
            part
            for factors in self.dims.values()
            for factor in factors
            for part in ((factor,) if isinstance(factor, str) else factor)
        }
        for name, setting in self.settings.items():
            value, default = values[name], setting.default
            if name in in_shapes or name == "num_layers":
                fits, kind = type(value) is int and value > 0, "a positive whole number"
            elif isinstance(default, bool):
                fits, kind = isinstance(value, bool), "true or false"
            else:
                fits, kind = type(value) in (int, float), "a number"
            if value is not None and not fits:
                raise UserError(f"{setting.key} must be {kind}, got {value!r}", where=where)

    def resolve_dims(self, settings: Mapping[str, object]) -> dict[str, int]:
        """Every dimension name's size."""
        sizes = {}
        for name, factors in self.dims.items():
            sums = [(factor,) if isinstance(factor, str) else factor for factor in factors]
            if all(settings[part] is not None for parts in sums for part in parts):
                sizes[name] = math.prod(
                    sum(int(settings[part]) for part in parts) for parts in sums
                )
        return sizes


def _check_layer_types(hf_config: Mapping[str, Any], where: str) -> None:
    types, layers = hf_config.get("layer_types"), hf_config.get("num_hidden_layers")
    if types is None:
        return
    if len(types) != layers:
        raise UserError(f"layer_types names {len(types)} layers of {layers}", where=where)
    known = ("full_attention", "sliding_attention")
    for kind in types:
        if kind not in known:
            raise UserError(
                f"layer_types has {kind!r}, which is not supported",
                where=where,
                fix=f"supported: {', '.join(known)}",
            )
