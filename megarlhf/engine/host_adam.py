"""AdamW whose main parameters and moments lie in the host's memory, where it is computed, too.

As ZeRO-Offload does it (Ren et al. 2021, arXiv:2101.06840): of a model that trains a GPU keeps 6 bytes a
parameter, weights and gradients; the other 12 are the host's. Gradients come down and weights go up in
pieces of bounded size, while other pieces are computed. On a machine without a GPU the same happens,
and both sides are the same memory.

Megatron's own `HybridDeviceOptimizer` (megatron-core 0.16.1) would not do: it keeps main parameters on
the GPU unless Transformer Engine is there, pins a copy of every gradient, and needs CUDA.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from megarlhf.engine.adam import GroupStepAdam, adamw
from megarlhf.engine.pieces import Piece, cut

LOAD = 2**22  # elements of a slot: 16 MiB
SLOTS = 3  # one is filled, one computed on and one emptied


class HostAdam(GroupStepAdam):
    """`GroupStepAdam` with its state on the host; to Megatron it is a precision-aware FusedAdam.

    That is one that keeps the main parameters itself, reads a parameter's gradient from its
    ``decoupled_grad`` and writes the parameter. See `GroupStepAdam` for the arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slots: list[_Slot] = []
        self._threads = 1

    @property
    def nbytes(self) -> int:
        """What `begin` allocates on the host."""
        elements = sum(param.numel() for group in self.param_groups for param in group["params"])
        return 4 * (3 * elements + SLOTS * LOAD)

    @torch.no_grad()
    def begin(self, threads: int) -> None:
        """Take the parameters' values and allocate everything; compute with so many threads."""
        self._threads = threads
        self._slots = [_Slot() for _ in range(SLOTS)]
        for group in self.param_groups:
            for param in group["params"]:
                main = torch.empty(param.shape, dtype=torch.float32, device="cpu")
                main.copy_(param.detach().to("cpu"))  # made fp32 on the host, where there is room
                self.state[param] = {
                    "master_param": main,
                    "exp_avg": torch.zeros_like(main),
                    "exp_avg_sq": torch.zeros_like(main),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter; ordered with the current stream, as a kernel would be."""
        loads = []
        for group in self.param_groups:
            params = [p for p in group["params"] if getattr(p, "decoupled_grad", None) is not None]
            if params:
                group["step"] = group.get("step", 0) + 1
                sizes = [param.numel() for param in params]
                loads += [_Load(group, params, pieces) for pieces in cut(sizes, LOAD)]
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            self._run(loads)
        finally:
            torch.set_num_threads(before)

    def _run(self, loads: "list[_Load]") -> None:
        """Each load down, computed, up; the next one comes down meanwhile, the last one goes up."""
        down, up = torch.cuda.Stream(), torch.cuda.Stream()
        current = torch.cuda.current_stream()
        down.wait_stream(current)
        up.wait_stream(current)
        slots = [self._slots[index % SLOTS] for index in range(len(loads))]
        for index in range(len(loads) + 1):
            if index < len(loads):
                slots[index].fetch(loads[index], down)
            if index > 0:
                slot, load = slots[index - 1], loads[index - 1]
                slot.arrived.synchronize()
                self._compute(load, slot)
                slot.send(load, [self.state[p]["master_param"] for p in load.params], up)
        current.wait_stream(up)

    def _compute(self, load: "_Load", slot: "_Slot") -> None:
        def stretches(name: str) -> list[torch.Tensor]:
            return [
                self.state[load.params[piece.index]][name][piece.begin : piece.end]
                for piece in load.pieces
            ]

        gradients = [slot.at(piece) for piece in load.pieces]
        moments = stretches("exp_avg"), stretches("exp_avg_sq")
        adamw(load.group, stretches("master_param"), gradients, *moments)

    def host_tensors(self) -> list[torch.Tensor]:
        """All that it keeps in the host's memory."""
        states = [tensor for state in self.state.values() for tensor in state.values()]
        return [*states, *(slot.memory for slot in self._slots)]

    # -- what Megatron asks of a precision-aware optimizer, to save and to load -----------------------

    def get_unscaled_state(self, param: torch.Tensor, name: str) -> torch.Tensor:
        """A parameter's ``master_param``, ``exp_avg`` or ``exp_avg_sq``, fp32."""
        return self.state[param][name]

    def set_scaled_state(self, param: torch.Tensor, name: str, value: torch.Tensor) -> None:
        """Set what `get_unscaled_state` gives."""
        self.state[param][name].copy_(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the groups' settings and steps; tensors come by `set_scaled_state`, in their places.

        (torch's would move them to the parameters' device and dtype.)
        """
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})


@contextmanager
def standing_in(config: Any) -> Iterator[None]:
    """Megatron's optimizers that are made meanwhile use `HostAdam`.

    Args:
        config: Megatron's of the optimizer.
    """
    import megatron.core.optimizer as optimizers
    from megatron.core.optimizer import distrib_optimizer

    # Its own switch for this (use_precision_aware_optimizer) insists on Transformer Engine's FusedAdam.
    config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
    with (
        patch.object(optimizers, "Adam", HostAdam),
        patch.object(distrib_optimizer, "Adam", HostAdam),
    ):
        yield


@dataclass(frozen=True)
class _Load:
    """Some of a group's gradients, of one slot's size."""

    group: dict[str, Any]
    params: list[torch.Tensor]
    pieces: list[Piece]


class _Slot:
    """Memory of the host that a GPU copies from and to by itself, first gradients, then weights."""

    def __init__(self) -> None:
        self.memory = torch.empty(
            LOAD, dtype=torch.float32, device="cpu", pin_memory=torch.cuda.is_available()
        )
        self.arrived, self._left = torch.cuda.Event(), torch.cuda.Event()

    def at(self, piece: Piece) -> torch.Tensor:
        """A piece's place, fp32."""
        return self.memory[piece.place : piece.place + piece.size]

    def fetch(self, load: _Load, stream: Any) -> None:
        """Copy gradients here, once what was here has left."""
        stream.wait_event(self._left)
        with torch.cuda.stream(stream):
            for piece in load.pieces:
                gradient = load.params[piece.index].decoupled_grad
                self.at(piece).copy_(gradient[piece.begin : piece.end], non_blocking=True)
            self.arrived.record()

    def send(self, load: _Load, mains: Sequence[torch.Tensor], stream: Any) -> None:
        """Copy main parameters to the parameters, in their dtype."""
        with torch.cuda.stream(stream):
            for piece, main in zip(load.pieces, [mains[p.index] for p in load.pieces], strict=True):
                param = load.params[piece.index]
                rounded = self.at(piece).view(param.dtype)[: piece.size]
                rounded.copy_(main[piece.begin : piece.end])
                param[piece.begin : piece.end].copy_(rounded, non_blocking=True)
            self._left.record()
