"""The device Megatron-Core runs on: CUDA where there is one, otherwise the CPU, made to look like it.

Megatron-Core 0.16.1 names CUDA in a few places even where it only moves tensors about. On a machine
without a GPU `prepare` answers those calls with their CPU meaning; on a GPU it changes nothing. It
must run before ``megatron`` is imported, in Megatron's own processes only.
"""

import functools
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._device import _device_constructors

_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float64: "torch.cuda.DoubleTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


def prepare() -> torch.device:
    """Make Megatron-Core importable and runnable here; return the device to put tensors on."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    _stand_in_for_cuda()
    return torch.device("cpu")


def backend() -> str:
    """The torch.distributed backend that goes with the device."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def put(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
    """A tensor of the host's on a device, which goes on computing meanwhile."""
    if where.type != "cuda":
        return tensor.to(where)
    return tensor.pin_memory().to(where, non_blocking=True)


@functools.cache
def _stand_in_for_cuda() -> None:
    # Megatron's `jit_fuser` is torch.compile, chosen at import; it fails under this device.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    _answer_for_cuda_module()
    _accept_cuda_arguments()


class _Stream:
    """A stream that is always done: CPU work is synchronous."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0

    def synchronize(self) -> None:
        """Nothing is pending."""

    def record_event(self, event: Any = None) -> "_Event":
        return _Event()

    wait_stream = wait_event = lambda self, *_: None


class _Event:
    """An event that has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    record = wait = synchronize = lambda self, *_: None


def _answer_for_cuda_module() -> None:
    cuda = torch.cuda
    cpu = torch.device("cpu")
    # The one CPU generator stands for "the GPU's", so that forked RNG states behave as on a GPU.
    cuda.default_generators = {None: torch.default_generator, 0: torch.default_generator}
    cuda.default_generators[cpu] = torch.default_generator
    replacements: dict[str, Any] = {
        "current_device": lambda: cpu,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "manual_seed": torch.manual_seed,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: nullcontext(),
        "Stream": _Stream,
        "Event": _Event,
        # Left alone it would queue each call until CUDA starts: RNG restores would never happen.
        "_lazy_call": lambda call, **_: call(),
    }
    for name, value in replacements.items():
        setattr(cuda, name, value)
    cuda.random.get_rng_state = replacements["get_rng_state"]


def _accept_cuda_arguments() -> None:
    # `with torch.device("meta")` knows the factories by identity, from a list made at its first use:
    # made now, it holds the originals, which ours call. (Without: wrong weights from transformers.)
    _device_constructors()
    for name in ("tensor", "zeros", "ones", "empty"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.Tensor.type = _cuda_named_type(torch.Tensor.type)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(
        *args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        if device is not None and not str(device).startswith("cuda"):
            kwargs["device"] = device
        return factory(*args, **kwargs)

    return make


def _cuda_named_type(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def type_(self: torch.Tensor, dtype: Any = None, **kwargs: Any) -> Any:
        if dtype is None and self.dtype in _TYPE_NAMES:
            return _TYPE_NAMES[self.dtype]  # what clip_grads and the optimizers assert
        return original(self, dtype, **kwargs)

    return type_
