"""What a stretch of code needs: memory by kind, operations, bytes read and written, bytes sent.

Counts as the code runs, operator by operator, on real and on fake tensors alike.
"""

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from megarlhf.plan.usage import ACTIVATIONS, LOGITS, Traffic, Usage

PASSES, STEP = "passes", "step"  # parts: of the model, and of the optimizer

_aten, _DEVICE = torch.ops.aten, torch.ops.prim.device.default


class Meter(TorchDispatchMode):
    """Counts while it is entered.

    Storages are counted from the operator that makes them to their end, views once. New ones are
    activations, or logits where a tensor's rows are as long as the vocabulary's part; `name` says what
    those are that stay.

    Args:
        logit_columns: Row lengths by which logits are known.
    """

    def __init__(self, logit_columns: Iterable[int] = ()) -> None:
        super().__init__()
        self._columns = frozenset(logit_columns)
        self._known: dict[int, tuple[str, int]] = {}
        self.live: Counter[str] = Counter()
        self._total, self._highest, self._part = 0, -1, PASSES
        self.usage = Usage()

    @contextlib.contextmanager
    def measured(self) -> Iterator[Usage]:
        """Count anew; the peak includes what is live already."""
        self.usage = usage = Usage()
        with self, self.part(PASSES):
            yield usage

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Keep the peak in here apart from that around it: it grows with other things."""
        around = self._part, self._highest
        self._part, self._highest = name, -1
        self._note()
        try:
            yield
        finally:
            self._part, self._highest = around

    def name(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count these tensors' storages as ``kind`` from now on, whatever they were counted as."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._see(storage, kind)
            before, nbytes = self._known[storage._cdata]
            self.live[before] -= nbytes
            self.live[kind] += nbytes
            self._known[storage._cdata] = kind, nbytes

    def name_all(self, kind: str) -> None:
        """Count all that is live as ``kind``."""
        self._known = {key: (kind, nbytes) for key, (_, nbytes) in self._known.items()}
        self.live = Counter({kind: self._total})

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> int:
        """Do not count these tensors' storages: they lie elsewhere. Returns their bytes."""
        total = 0
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            kind, nbytes = self._known[key]
            self.live[kind] -= nbytes
            self._known[key] = kind, 0
            total += nbytes
        self._total -= total
        return total

    def _now(self) -> dict[str, int]:
        return {kind: nbytes for kind, nbytes in self.live.items() if nbytes}

    def _see(self, storage: torch.UntypedStorage, kind: str) -> None:
        key = storage._cdata
        if key in self._known:
            return
        nbytes = storage.nbytes()
        self._known[key] = kind, nbytes
        self.live[kind] += nbytes
        self._total += nbytes
        weakref.finalize(storage, self._forget, key)
        self._note()

    def _note(self) -> None:
        if self._total > self._highest:
            self._highest = self._total
            self.usage.peaks[self._part] = self._now()

    def _forget(self, key: int) -> None:
        kind, nbytes = self._known.pop(key)
        self.live[kind] -= nbytes
        self._total -= nbytes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and guarding against it costs with each operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is _DEVICE:  # only fake tensors are asked, and with each gradient
            return args[0].fake_device
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = list(_tensors((out,)))
        for tensor in tensors:
            is_logits = tensor.ndim > 1 and tensor.shape[-1] in self._columns
            self._see(tensor.untyped_storage(), LOGITS if is_logits else ACTIVATIONS)
        if func.namespace == "c10d":
            self._count_traffic(func, args)
        elif func.namespace == "aten" and not func.is_view:
            self._count_work(func, args, kwargs, out, tensors)
        return out

    def _count_work(
        self, func: Any, args: tuple, kwargs: dict, out: Any, tensors: list[torch.Tensor]
    ) -> None:
        packet = func._overloadpacket
        if packet in _ATTENTION:
            flops = _ATTENTION[packet](*args, **kwargs)
            self.usage.attention_flops += flops
            self.usage.flops += flops
        elif packet in _GROUPED:
            self.usage.flops += _GROUPED[packet](*args)
        elif packet in flop_registry:
            self.usage.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet not in _FREE:
            given = _tensors((*args, *kwargs.values()))
            self.usage.moved += sum(t.numel() * t.itemsize for t in (*given, *tensors))

    def _count_traffic(self, func: Any, args: tuple) -> None:
        group = next((_ranks(arg) for arg in args if isinstance(arg, torch.ScriptObject)), ())
        if len(group) < 2:
            return
        name = func._schema.name.split("::")[1].strip("_")
        kind = next((known for known in _COLLECTIVES if name.startswith(known)), name)
        size = max((_size(arg) for arg in args), default=0)
        found = self.usage.traffic.setdefault((group, kind), Traffic(group, kind))
        found.calls += 1
        found.nbytes += size


_COLLECTIVES = ("allreduce", "allgather", "reduce_scatter", "alltoall", "send", "recv")


def _tensors(items: Iterable[Any]) -> Iterator[torch.Tensor]:
    for item in items:
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)


def _size(item: Any) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in _tensors((item,)))


def _ranks(item: torch.ScriptObject) -> tuple[int, ...]:
    try:
        group = dist.ProcessGroup.unbox(item)
    except RuntimeError:  # a reduce operation
        return ()
    return tuple(dist.get_process_group_ranks(group))


def _attention_forward(query: torch.Tensor, key: torch.Tensor, *rest: Any, **_: Any) -> int:
    """Two products of [Lq, d] by [d, Lk] a head; half of them under a causal mask."""
    causal = any(item is True for item in rest)
    blocks, heads, queries, dim = query.shape
    return 4 * blocks * heads * queries * key.shape[2] * dim // (2 if causal else 1)


def _attention_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *rest: Any, **_: Any
) -> int:
    """Five products: the scores again, and two for each of dP with dV, and dQ with dK."""
    return _attention_forward(query, key, *rest) * 5 // 2


def _grouped(tokens: torch.Tensor, weights: torch.Tensor, *_: Any) -> int:
    """[T, k] by [experts, k, n], or of [k, T] by [T, n] cut along T."""
    if weights.ndim == 3 and tokens.ndim == 2:
        return 2 * math.prod(tokens.shape) * weights.shape[-1]
    return 2 * math.prod(tokens.shape[-2:]) * weights.shape[-1]


_ATTENTION: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._scaled_dot_product_flash_attention: _attention_forward,
    _aten._scaled_dot_product_flash_attention_backward: _attention_backward,
}
_GROUPED: dict[Any, Callable[..., int]] = {_aten._grouped_mm: _grouped}
# Neither reads nor writes: it allocates, or looks at what is there.
_FREE = {
    _aten.empty,
    _aten.empty_like,
    _aten.new_empty,
    _aten.empty_strided,
    _aten.detach,
    _aten.alias,
    _aten.set_,
    _aten.resize_,
}
