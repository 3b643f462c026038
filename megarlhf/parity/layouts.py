"""Layouts by name (``tp2.sp.pp2.cp2``): read, check against a model, enumerate. Pure functions."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from megarlhf.config import layout_checks
from megarlhf.config.schema import ParallelConfig
from megarlhf.errors import UserError
from megarlhf.parallel.topology import Topology

MAX_RANKS = 8
_SIZES = ("tp", "pp", "vpp", "cp", "ep", "dp")
_HELP = "components are tpN ppN cpN epN dpN vppN and sp, joined by dots: tp2.sp.pp2.cp2"
# How `config.layout_checks` names the components, in the order in which they must be replaced.
_KEYS = {
    "model.parallel.tensor * pipeline * context": "tp * pp * cp",
    "model.parallel.virtual_pipeline": "vpp",
    "model.parallel.tensor": "tp",
    "model.parallel.pipeline": "pp",
    "model.parallel.context": "cp",
    "model.parallel.expert": "ep",
    "model.parallel.sequence": "sp",
    "context * data parallelism": "cp * dp",
}


@dataclass(frozen=True)
class Layout:
    """Sizes of every parallel dimension, ``sp`` for sequence parallelism."""

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    sp: bool = False

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read a name, components in any order.

        Without ``dp``, as many replicas as the expert parallelism needs beside ``cp``.

        Raises:
            UserError: An unknown, repeated or zero component.
        """
        values: dict[str, Any] = {}
        for component in text.split("."):
            match = re.fullmatch(r"(tp|pp|vpp|cp|ep|dp)([1-9]\d*)|(sp)", component)
            if match is None:
                raise UserError(f"{component!r} is no component", where=_where(text), fix=_HELP)
            name = match[1] or match[3]
            if name in values:
                raise UserError(f"{name} is given twice", where=_where(text), fix=_HELP)
            values[name] = int(match[2]) if match[2] else True
        layout = cls(**values)
        if "dp" not in values:
            layout = replace(layout, dp=layout.ep // math.gcd(layout.ep, layout.cp))
        return layout

    @property
    def name(self) -> str:
        """The canonical name; ``tp1`` for one rank."""
        parts = [f"{name}{size}" for name in _SIZES if (size := getattr(self, name)) > 1]
        if self.sp:
            parts.insert(1 if self.tp > 1 else 0, "sp")
        return ".".join(parts) or "tp1"

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tp * self.pp * self.cp * self.dp

    @property
    def parallel(self) -> ParallelConfig:
        """As the configuration writes it (where ``dp`` is what is left of the ranks)."""
        return ParallelConfig(
            tensor=self.tp,
            pipeline=self.pp,
            context=self.cp,
            expert=self.ep,
            sequence=self.sp,
            virtual_pipeline=self.vpp,
        )

    @property
    def topology(self) -> Topology:
        """Which rank holds what."""
        return Topology.of(self.parallel, self.world)


ONE_RANK = Layout()


def check(layout: Layout, model: Mapping[str, Any], max_ranks: int = MAX_RANKS) -> None:
    """Refuse a layout that the model cannot have, before anything is started.

    Args:
        layout: The layout.
        model: The parsed ``config.json``.
        max_ranks: Most ranks that a layout may have.

    Raises:
        UserError: Says why, and names the nearest layouts that are possible.
    """
    problem = _problem(layout, model, max_ranks)
    if problem is not None:
        near = ", ".join(other.name for other in nearest(layout, model, max_ranks))
        raise UserError(problem, where=_where(layout.name), fix=f"nearest that it can: {near}")


def _problem(layout: Layout, model: Mapping[str, Any], max_ranks: int) -> str | None:
    if layout.world > max_ranks:
        return f"needs {layout.world} ranks, more than the {max_ranks} of --max-ranks"
    try:
        layout_checks.check_parallel(layout.parallel, dict(model), layout.world, "ranks")
    except UserError as error:
        text = f"{error.where} {error.what}"
        for key, name in _KEYS.items():
            text = text.replace(key, name)
        return text
    return None


def possible(model: Mapping[str, Any], max_ranks: int = MAX_RANKS) -> Iterator[Layout]:
    """Every layout that the model can have."""
    sizes = range(1, max_ranks + 1)
    chunks = range(1, int(model.get("num_hidden_layers", 1)) + 1)
    for tp, pp, cp, dp in product(sizes, repeat=4):
        world = tp * pp * cp * dp
        if world > max_ranks:
            continue
        for vpp, ep, sp in product(chunks, sizes, (False, True)):
            layout = Layout(tp, pp, vpp, cp, ep, dp, sp)
            if ep <= cp * dp and _problem(layout, model, max_ranks) is None:
                yield layout


def nearest(
    layout: Layout, model: Mapping[str, Any], max_ranks: int = MAX_RANKS, count: int = 3
) -> list[Layout]:
    """The possible layouts that differ least, by factors of their sizes."""

    def distance(other: Layout) -> tuple[float, int, str]:
        factors = (getattr(other, name) / getattr(layout, name) for name in _SIZES)
        apart = sum(abs(math.log2(factor)) for factor in factors)
        return apart + 0.5 * (other.sp != layout.sp), other.world, other.name

    return sorted(possible(model, max_ranks), key=distance)[:count]


def default_layouts(model: Mapping[str, Any], max_ranks: int = MAX_RANKS) -> list[Layout]:
    """What is measured when no layout is named, from few ranks to many.

    Every combination of each dimension's smallest size above one; and the next size alone and
    beside any one other dimension.
    """
    layouts = [layout for layout in possible(model, max_ranks) if layout != ONE_RANK]
    steps = {name: sorted({getattr(layout, name) for layout in layouts}) for name in _SIZES}
    for name in ("cp", "dp"):  # these are not bound to the model: a factor of two is enough
        steps[name] = [size for size in steps[name] if size & (size - 1) == 0]

    def chosen(layout: Layout) -> bool:
        if any(getattr(layout, name) not in steps[name][:3] for name in _SIZES):
            return False
        # Expert parallelism divides the ranks of the others, it does not add to them.
        places = [steps[name].index(getattr(layout, name)) for name in _SIZES if name != "ep"]
        beyond, beside = places.count(2), sum(place > 0 for place in places)
        return beyond == 0 or (beyond == 1 and beside <= 2)

    return sorted(filter(chosen, layouts), key=lambda layout: (layout.world, layout.name))


def _where(text: str) -> str:
    return f"layout {text}"
