"""What adapters a model has, and which tensors they are in PEFT's format."""

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

from megarlhf.errors import UserError
from megarlhf.models.lora.operations import Below, SomeRows
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.family import Dims, Entry, Tensor
from megarlhf.models.weights.operations import Cut, Operation, Replicated

ALL_LINEAR = "all-linear"
PREFIX = "base_model.model."  # PEFT's, before every name
SUFFIX = "_lora"  # of the module beside a Megatron linear that holds its adapters

Kind = Literal["column", "row", "copy"]  # of a linear: cut by rows, by columns, or not at all
_KINDS: dict[int | None, Kind] = {0: "column", 1: "row", None: "copy"}


@dataclass(frozen=True)
class Adapter:
    """Low-rank adapters (LoRA, arXiv:2106.09685): x W^T becomes x W^T + scaling * (x A^T) B^T.

    Attributes:
        rank: Rows of A [rank, in], columns of B [out, rank].
        alpha: Numerator of the scaling.
        targets: Hugging Face's names of the modules that have one, such as ``q_proj``.
        dropout: Share of the adapters' inputs that training sets to 0.
        rslora: Divide by the square root of the rank (arXiv:2312.03732).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scaling(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def resolved(self, spec: ModelSpec) -> "Adapter":
        """With the names that ``all-linear`` stands for.

        Raises:
            UserError: A target is no linear of the model.
        """
        known = target_names(spec)
        wanted = known if ALL_LINEAR in self.targets else tuple(dict.fromkeys(self.targets))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UserError(
                f"the model has no linear {unknown[0]} that an adapter could be added to",
                where="lora.target_modules",
                fix=f"choose of {', '.join(known)}, or {ALL_LINEAR}",
            )
        return replace(self, targets=wanted)


@dataclass(frozen=True)
class AdapterSpec(ModelSpec):
    """A model's adapters as a model of their own: everything that reads a layout map reads theirs.

    To them belongs a scalar head, which is trained and kept with them (PEFT's ``modules_to_save``).

    Attributes:
        adapter: Which they are; its targets resolved.
    """

    adapter: Adapter = Adapter(0, 0.0, ())

    @classmethod
    def of(cls, spec: ModelSpec, adapter: Adapter) -> "AdapterSpec":
        """Of a model.

        Raises:
            UserError: See `Adapter.resolved`.
        """
        known = {field.name: getattr(spec, field.name) for field in fields(ModelSpec)}
        return cls(**known, adapter=adapter.resolved(spec))

    @cached_property
    def dims(self) -> dict[str, int]:
        """The family's dimension names, and ``lora_rank``."""
        return {**self.family.resolve_dims(self.settings), "lora_rank": self.adapter.rank}

    @cached_property
    def base(self) -> ModelSpec:
        """The model itself."""
        return ModelSpec(**{field.name: getattr(self, field.name) for field in fields(ModelSpec)})

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """A and B of every Megatron linear that has any, and a scalar head."""
        found = [part for linear in self.linears for part in (linear.down, linear.up)]
        if self.scalar_head is not None:
            (head,) = (e for e in self.base.entries if e.parameter == "output_layer.weight")
            (tensor,) = head.tensors
            found.append(replace(head, tensors=(replace(tensor, name=PREFIX + tensor.name),)))
        return tuple(found)

    @cached_property
    def linears(self) -> "tuple[AdaptedLinear, ...]":
        """The Megatron linears that have adapters."""
        found = (self._linear(entry) for entry in self.base.entries if is_linear(entry))
        return tuple(linear for linear in found if linear is not None)

    def _linear(self, entry: Entry) -> "AdaptedLinear | None":
        targets = self.adapter.targets
        sources = tuple(i for i, t in enumerate(entry.tensors) if module_name(t.name) in targets)
        if not sources:
            return None
        operation = entry.operation(self.dims)
        kind = _KINDS[operation.partition_dim]
        chosen = [entry.tensors[source] for source in sources]
        (width,) = {tensor.shape.split()[1] for tensor in chosen}
        place = entry.parameter.removesuffix(".weight") + SUFFIX
        return AdaptedLinear(
            entry,
            kind,
            sources,
            down=replace(
                entry,
                parameter=f"{place}.A",
                operation=lambda dims: Cut(1) if kind == "row" else Below(),
                tensors=tuple(Tensor(_name(t, "A"), f"lora_rank {width}") for t in chosen),
            ),
            up=replace(
                entry,
                parameter=f"{place}.B",
                operation=lambda dims: _up_operation(entry, kind, sources, dims),
                tensors=tuple(
                    Tensor(_name(t, "B"), f"{t.shape.split()[0]} lora_rank") for t in chosen
                ),
            ),
        )


@dataclass(frozen=True)
class AdaptedLinear:
    """A Megatron linear with adapters.

    Attributes:
        entry: Of its weight.
        kind: How its weight is cut.
        sources: Which of the entry's tensors have an adapter.
        down: Entry of A: the modules' own, one under the other.
        up: Entry of B: rows in the order of the weight's.
    """

    entry: Entry
    kind: Kind
    sources: tuple[int, ...]
    down: Entry
    up: Entry


def is_linear(entry: Entry) -> bool:
    """Whether adapters can be added to it: not to embeddings, heads, norms and routers."""
    module, _, last = entry.parameter.rpartition(".")
    return last == "weight" and module.rpartition(".")[2].startswith("linear_")


def module_name(tensor: str) -> str:
    """``q_proj`` for the name of its weight."""
    return tensor.removesuffix(".weight").rpartition(".")[2]


def target_names(spec: ModelSpec) -> tuple[str, ...]:
    """Hugging Face's names of a model's linears, in a layer's order."""
    linears = (entry for entry in spec.entries if is_linear(entry))
    names = (module_name(tensor.name) for entry in linears for tensor in entry.tensors)
    return tuple(dict.fromkeys(names))


def _up_operation(entry: Entry, kind: Kind, sources: tuple[int, ...], dims: Dims) -> Operation:
    if kind != "column":
        return Replicated()
    shapes = tuple((tensor.resolve(dims)[0], dims["lora_rank"]) for tensor in entry.tensors)
    return SomeRows(entry.operation(dims), shapes, sources)


def _name(tensor: Tensor, matrix: str) -> str:
    return PREFIX + tensor.name.removesuffix("weight") + f"lora_{matrix}.weight"
