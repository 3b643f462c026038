"""The engine's end where only adapters are trained: they are merged into weights that it keeps.

The base comes once and is kept on the host, of the modules with adapters. With each update W +
scaling * B A is computed from it, in fp32 or wider, and takes the place of the weights. So nothing adds
up over updates, sampling costs what it costs without adapters, and every kernel and layout works.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from megarlhf.errors import UserError
from megarlhf.models.lora.adapter import AdapterSpec
from megarlhf.sync.adapter_layout import AdaptedPart, adapted_parts
from megarlhf.sync.engine_layout import EngineParameter
from megarlhf.sync.fingerprints import Fingerprints, fingerprints_of
from megarlhf.sync.landing import Landing
from megarlhf.sync.link import StreamInfo
from megarlhf.sync.transports import open_inlet


class EngineAdapters:
    """The adapters of one rank of an engine.

    Args:
        spec: The adapters.
        info: Of the link to the trainer.
        rank: This worker.
        device: Of the engine's weights.
        landing: The engine's parameters.
        layout: What they are.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        info: StreamInfo,
        rank: int,
        device: torch.device,
        landing: Landing,
        layout: Sequence[EngineParameter],
    ) -> None:
        self._scaling, self._device, self._landing = spec.adapter.scaling, device, landing
        self._dtype, self._place = info.wire_dtype, (info.number, rank)
        self._parts: dict[str, list[AdaptedPart]] = defaultdict(list)
        for part in adapted_parts(spec, info.engine_topology, rank):
            self._parts[part.parameter].append(part)
        touched = {parameter.module for parameter in layout if parameter.name in self._parts}
        self._modules: dict[str, list[str]] = defaultdict(list)
        for parameter in layout:  # a mixture is packed as a whole
            if parameter.module in touched and len(parameter.shape) > 1:
                self._modules[parameter.module].append(parameter.name)
        self.kept: dict[str, torch.Tensor] = {}
        self._plan = info.plan(spec)
        self._buffers = _Buffers(
            (m for parts in self._parts.values() for part in parts for m in (part.down, part.up)),
            self._dtype,
            device,
        )
        self._inlet = open_inlet(info, self._plan, rank, device, self._buffers)

    @property
    def has_base(self) -> bool:
        """Whether the base has come."""
        return bool(self.kept)

    def keep(self, values: Mapping[str, torch.Tensor]) -> None:
        """Keep the base's values of the modules with adapters, on the host."""
        names = {name for names in self._modules.values() for name in names}
        for name in names & values.keys():
            self.kept[name] = values[name].to("cpu", copy=True)

    def receive(self) -> None:
        """Receive one update and merge it."""
        self._inlet.begin()
        for bucket in self._plan:
            self._buffers.take(self._inlet.receive(bucket, bucket.messages[self._place]))
            self._inlet.done(bucket)
        for names in self._modules.values():
            self._landing.finish({name: self._merged(name) for name in names})

    def fingerprints(self) -> Fingerprints:
        """Of the adapters, once the engine was seen to compute with base and adapters.

        Raises:
            UserError: It computes with something else.
        """
        for name in self.kept:
            merged = self._merged(name)
            if not all(torch.equal(found, merged) for found in self._landing.readings(name)):
                raise UserError(
                    f"engine {self._place[0]}: its {name} is not the base with the adapters",
                    where="stream.verify",
                    fix="the weights were damaged in the engine: do not trust this run's samples; the "
                    "newest checkpoint in output.dir is the trainer's and is intact",
                )
        moves = [
            move
            for bucket in self._plan
            for part in bucket.messages[self._place].values()
            for move in part
        ]
        values = (
            self._buffers.live(move.engine_parameter).data[move.target.slices] for move in moves
        )
        return fingerprints_of(moves, values, self._dtype)

    def _merged(self, name: str) -> torch.Tensor:
        """A parameter's values with the adapters, in the engine's dtype, in fresh memory."""
        base = self.kept[name].to(self._device)
        wide = torch.promote_types(base.dtype, torch.float32)
        whole = base.to(wide, copy=True)
        for part in self._parts.get(name, ()):
            down, up = (
                self._buffers.live(matrix.name).data.to(wide) for matrix in (part.down, part.up)
            )
            target = whole[part.target.slices]
            target += self._scaling * (up @ down).view(target.shape)
        return whole.to(base.dtype)


class _Buffers:
    """Memory that adapters are received into: stands where a `Landing` does."""

    def __init__(
        self, parameters: Iterable[EngineParameter], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._tensors = {
            parameter.name: nn.Parameter(
                torch.zeros(parameter.shape, dtype=dtype, device=device), requires_grad=False
            )
            for parameter in parameters
        }

    def live(self, name: str) -> nn.Parameter:
        """See `Landing.live`."""
        return self._tensors[name]

    def take(self, values: Mapping[str, torch.Tensor]) -> None:
        """Copy what was not received into its place."""
        for name, value in values.items():
            if self._tensors[name].data_ptr() != value.data_ptr():
                self._tensors[name].data.copy_(value)

    def is_direct(self, name: str, dtype: torch.dtype) -> bool:
        """All is written in place, where the transport can."""
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Landing.shape`."""
        return tuple(self._tensors[name].shape)

    def has_padding(self, name: str) -> bool:
        """There is none."""
        return False
