"""One rank of any world in this process alone, on tensors without contents.

torch's fake process group answers every collective at once, and a fake tensor has a shape, a dtype and
a storage of the right size, but no memory. So the real code of a rank of a large world runs here: it
builds the model and takes its steps. What would depend on contents is answered: see `fake_rank`.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from megarlhf.engine.fake_results import Remembered
from megarlhf.parallel import device
from megarlhf.parallel.groups import make_groups
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

_aten = torch.ops.aten
_RESULTS = Remembered()


@dataclass
class Received:
    """What a rank is told by its neighbours, who are not there.

    Attributes:
        hidden: Width of the activations that a pipeline stage passes on.
        cut: Ranks that pass on a part of a micro-batch's tokens each, of those that have the same ones.
        tokens: Of a micro-batch on this rank's part of the context; to be kept up to date.
        experts_per_token: Of a mixture; 0 without.
        skew: How much more than its even share of a mixture's tokens this rank's experts are sent.
    """

    hidden: int
    cut: int = 1
    tokens: int = 0
    experts_per_token: int = 0
    skew: float = 1.0

    @property
    def shape(self) -> list[int]:
        """Of the activations that a pipeline stage passes on."""
        return [self.tokens // self.cut, 1, self.hidden]


@contextlib.contextmanager
def fake_world(rank: int, topology: Topology, seed: int = 1) -> "Iterator[ProcessGroupCollection]":
    """Be ``rank`` of a world that exists nowhere; gives Megatron's process groups.

    Not inside a process group.
    """
    device.prepare()
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=topology.world)
    try:
        yield make_groups(topology, seed)
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextlib.contextmanager
def fake_tensors(received: Received) -> Iterator[FakeTensorMode]:
    """Tensors made here are fake, and Megatron finds the answers that fake tensors cannot give.

    - A number read from a tensor is 0, a truth value True; the gradient is to be clipped.
    - A pipeline stage is sent activations of ``received.shape``.
    - No weights are read, and the host's memory holds everything.
    - Tokens are routed to a mixture's experts evenly, times ``received.skew`` for this rank's.
    """
    with contextlib.ExitStack() as stack:
        for target, name, replacement in _replacements(received):
            stack.enter_context(patch.object(target, name, replacement))
        yield stack.enter_context(_AnsweringFakes(received))


class _AnsweringFakes(FakeTensorMode):
    """Answers also what fake tensors refuse because it depends on their contents."""

    def __init__(self, received: Received) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.cache_enabled = False  # torch's own memory of results: see `Remembered`
        self._received = received

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and guarding against it costs with each operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _answer(args[0])
        if (
            func is _aten.masked_select.default
        ):  # a mixture's: of [experts, tokens], the routed ones
            return args[0].new_empty(args[1].shape[-1] * self._received.experts_per_token)
        if func is _aten.repeat_interleave.Tensor:  # which sequence each token is of
            return args[0].new_empty(self._received.tokens)
        return _RESULTS.result(self, func, types, args, kwargs or {})


def _answer(number: FakeTensor) -> float | int | bool:
    if number.constant is not None:  # made of a number on the host, a moment ago
        return number.constant.item()
    return True if number.dtype == torch.bool else 0.0 if number.is_floating_point() else 0


def _zeros(numbers: FakeTensor) -> Any:
    if numbers.dim() > 1:
        return [_zeros(row) for row in numbers]
    answer = _answer(numbers) if numbers.constant is None else numbers.constant.tolist()
    return answer if numbers.dim() == 0 or isinstance(answer, list) else [answer] * len(numbers)


def _replacements(received: Received) -> list[tuple[Any, str, Any]]:
    from megatron.core.distributed import param_and_grad_buffer
    from megatron.core.optimizer import ChainedOptimizer
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.transformer.moe import token_dispatcher

    from megarlhf.engine import host_share, model_engine, passes
    from megarlhf.models import mixture
    from megarlhf.models.lora import attach
    from megarlhf.parallel import logprobs

    return [
        (model_engine, "load_pretrained", lambda *_: None),
        (host_share, "free_memory", lambda: 2**62),
        (passes, "continued_runs", _with_contents(passes.continued_runs)),
        (attach, "set_values", lambda *_, **__: None),
        (nn.Module, "to", lambda module, *_, **__: module),  # fakes cannot be swapped in place
        (FakeTensor, "tolist", _zeros),  # torch's asks number by number
        (dist, "all_gather_object", _all_the_same),
        (ChainedOptimizer, "get_grad_norm", _large(ChainedOptimizer.get_grad_norm)),
        (param_and_grad_buffer, "_coalescing_manager", _at_once),
        (
            P2PCommunicator,
            "_communicate_shapes",
            _shapes(P2PCommunicator._communicate_shapes, received),
        ),
        (
            token_dispatcher.MoEAlltoAllTokenDispatcher,
            "_maybe_dtoh_and_synchronize",
            _even_routing(received.skew),
        ),
        (token_dispatcher, "sort_chunks_by_idxs", _halves(token_dispatcher.sort_chunks_by_idxs)),
        # A CPU's chunks, and gloo's makeshifts for uneven parts, are not what runs on a GPU.
        (logprobs, "chunk_tokens", lambda _: logprobs.CHUNK_TOKENS),
        (mixture, "_uneven_gather", lambda even: even),
        (mixture, "_uneven_reduce_scatter", lambda even: even),
    ]


def _all_the_same(found: list[Any], own: Any, group: Any = None) -> None:
    found[:] = [own] * len(found)


def _large(norm: Callable[[Any], float]) -> Callable[[Any], float]:
    return lambda optimizer: norm(optimizer) + 1e6


@contextlib.contextmanager
def _at_once(*_: Any, **__: Any) -> Iterator[Any]:
    yield SimpleNamespace(wait=lambda: None)


def _shapes(exchange: Callable[..., Any], received: Received) -> Callable[..., Any]:
    """Neighbours tell each other shapes: what arrives is not what they said."""

    def communicate(communicator: Any, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        exchange(communicator, *args, **kwargs)
        return received.shape, received.shape

    return communicate


def _with_contents(make: Callable[..., Any]) -> Callable[..., Any]:
    """What is made of host integers alone, and has to be looked at while it is made."""

    def made(*args: Any) -> Any:
        with unset_fake_temporarily():
            return make(*args)

    return made


def _halves(sort: Callable[..., Any]) -> Callable[..., Any]:
    """Of as many chunks as there are pairs of a rank and an expert two are made: they are as long."""

    def swap(tokens: torch.Tensor, *_: Any, **options: Any) -> Any:
        return sort(tokens, _cut(len(tokens), 2), np.array([1, 0]), **options)

    return swap


def _even_routing(skew: float) -> Callable[..., Any]:
    """In place of the dispatcher's method that moves its counts to the host."""

    def on_host(dispatcher: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if point != dispatcher.cuda_dtoh_point:
            return tokens_per_expert
        sent = int(dispatcher.num_out_tokens)
        ranks, copies, own = dispatcher.ep_size, dispatcher.tp_size, dispatcher.num_local_experts
        got = min(round(sent / ranks * skew), sent) if ranks > 1 else sent  # from each rank
        each = _cut(got, own)
        if ranks > 1 or copies > 1:
            dispatcher.input_splits = _cut(sent, ranks)
            dispatcher.output_splits = np.full(ranks, got)
            dispatcher.output_splits_tp = np.full(copies, got * ranks)
        if own > 1:
            dispatcher.num_global_tokens_per_local_expert = np.tile(each, (copies * ranks, 1))
        with unset_fake_temporarily():
            return torch.from_numpy(each * copies * ranks)

    return on_host


def _cut(total: int, parts: int) -> np.ndarray:
    """``total`` as ``parts`` integers that differ by at most one. Not a tensor: nothing counts it."""
    least, more = divmod(total, parts)
    return least + (np.arange(parts) < more).astype(np.int64)
