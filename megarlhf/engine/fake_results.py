"""What operators make of fake tensors, remembered: torch's own memory of it takes ten times as long.

An operator's result has a shape, a dtype and a storage that follow from its arguments' shapes, strides,
offsets and dtypes and from its numbers. They are found by torch once, and made again from then on.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

_MOST = 100_000  # results that are kept at a time
_CHANGE_SIZES = {torch.ops.aten.set_, torch.ops.aten.resize_, torch.ops.aten.resize_as_}
_OTHERS = {torch.Tag.inplace_view, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_SCALARS = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout}
_SCALARS |= {torch.memory_format, complex}

Result = Callable[[FakeTensorMode, tuple], Any]  # from the mode and the arguments


class Remembered:
    """Results of operators, by what they depend on."""

    def __init__(self) -> None:
        self._results: dict[tuple, Result | None] = {}

    def result(self, mode: FakeTensorMode, func: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        """What the operator makes of the arguments, from memory where that is possible."""
        key = [func, torch.get_default_dtype()]
        if not (_add(key, mode, args) and (not kwargs or _add_named(key, mode, kwargs))):
            return mode.dispatch(func, types, args, kwargs)
        known = tuple(key)
        if (found := self._results.get(known)) is not None:
            return found(mode, args)
        if known in self._results:
            return mode.dispatch(func, types, args, kwargs)
        out = _found(mode, func, types, args, kwargs)
        if len(self._results) >= _MOST:
            self._results.clear()
        self._results[known] = _result(func, args, out)
        return out


def _found(mode: FakeTensorMode, func: Any, types: Any, args: tuple, kwargs: dict) -> Any:
    """What torch says. Where the operator has a kernel for tensors without contents, and is not asked
    for another device, that one says it: torch's own way there is a long one.
    """
    flat = (each for arg in args for each in (arg if isinstance(arg, list | tuple) else (arg,)))
    first = next((each for each in flat if isinstance(each, FakeTensor)), None)
    if first is None or kwargs.get("device") is not None or not _has_kernel(func):
        return mode.dispatch(func, types, args, kwargs)
    with in_kernel_invocation_manager(mode):
        out = func(*args, **kwargs)
    device = first.fake_device

    def wrapped(one: Any) -> Any:
        is_bare = isinstance(one, torch.Tensor) and not isinstance(one, FakeTensor)
        return FakeTensor(mode, one, device) if is_bare else one

    if isinstance(out, list | tuple):
        return (list if isinstance(out, list) else tuple)(map(wrapped, out))
    return wrapped(out)


@functools.cache
def _has_kernel(func: Any) -> bool:
    has = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    return _is_plain(func) and func.namespace == "aten" and has(func.name(), "Meta")


@functools.cache
def _is_plain(func: Any) -> bool:
    """Whether the result depends on what is in the key alone."""
    is_known = isinstance(func, torch._ops.OpOverload) and torch._library.utils.is_builtin(func)
    return is_known and func._overloadpacket not in _CHANGE_SIZES and not _OTHERS & set(func.tags)


def _add(key: list, mode: FakeTensorMode, args: tuple | list) -> bool:
    """What the result can depend on; False where it is not known to be that alone.

    A tensor of another mode is what Megatron has kept of an earlier model.
    """
    key.append(len(args))
    for arg in args:
        kind = type(arg)
        if kind is FakeTensor:
            if arg.constant is not None or arg.fake_mode is not mode:
                return False
            key += (arg.shape, arg.stride(), arg.storage_offset(), arg.dtype)
        elif kind in _SCALARS:
            key += (kind, arg)
        elif kind is list or kind is tuple:
            if not _add(key, mode, arg):
                return False
        else:
            return False
    return True


def _add_named(key: list, mode: FakeTensorMode, kwargs: dict) -> bool:
    key += kwargs
    return _add(key, mode, tuple(kwargs.values()))


def _result(func: Any, args: tuple, out: Any) -> Result | None:
    """How to make a result again; None: it has to be found anew each time."""
    if not _is_plain(func):
        return None
    if out is None:
        return lambda mode, args: None
    if isinstance(out, FakeTensor):
        return _tensor(args, out)
    if not isinstance(out, list | tuple) or not all(isinstance(one, FakeTensor) for one in out):
        return None
    parts = [_tensor(args, one) for one in out]
    if any(part is None for part in parts):
        return None
    kind = list if isinstance(out, list) else tuple
    return lambda mode, args: kind(part(mode, args) for part in parts)


def _tensor(args: tuple, out: FakeTensor) -> Result | None:
    if out.constant is not None or out.layout != torch.strided or out.is_conj() or out.is_neg():
        return None
    storage = out.untyped_storage()._cdata
    for place, arg in enumerate(args):
        if arg is out:
            return lambda mode, args: args[place]
        if isinstance(arg, FakeTensor) and arg.untyped_storage()._cdata == storage:
            return _view(place, out)
    return _fresh(out)


def _view(place: int, out: FakeTensor) -> Result:
    shape, stride, offset, dtype = tuple(out.shape), out.stride(), out.storage_offset(), out.dtype
    wrapped = _wrapping(out)

    def view(mode: FakeTensorMode, args: tuple) -> FakeTensor:
        bare = torch.empty_strided((0,), (1,), dtype=dtype, device="meta")
        bare.set_(args[place].untyped_storage(), offset, shape, stride)
        return wrapped(mode, bare)

    return view


def _fresh(out: FakeTensor) -> Result | None:
    shape, stride, dtype = tuple(out.shape), out.stride(), out.dtype
    wrapped = _wrapping(out)

    def fresh(mode: FakeTensorMode, args: tuple) -> FakeTensor:
        return wrapped(mode, torch.empty_strided(shape, stride, dtype=dtype, device="meta"))

    again = fresh(out.fake_mode, ()).untyped_storage().nbytes()
    return fresh if again == out.untyped_storage().nbytes() and not out.storage_offset() else None


def _wrapping(out: FakeTensor) -> Callable[[FakeTensorMode, torch.Tensor], FakeTensor]:
    """A fake tensor like ``out`` around one on the meta device."""
    device, attributes = out.fake_device, {**vars(out), "fake_mode": None}

    def wrapped(mode: FakeTensorMode, bare: torch.Tensor) -> FakeTensor:
        found = torch.Tensor._make_subclass(
            FakeTensor, bare, False, dispatch_device=True, device_for_backend_keys=device
        )
        found.__dict__.update(attributes)
        found.fake_mode = mode
        return found

    return wrapped
