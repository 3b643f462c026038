"""Where rectangles land in a live engine, and what has to be done with a module once it has all.

Most parameters are live memory in the checkpoint's layout: a rectangle is written straight into it. What
a kernel keeps in a layout of its own (oneDNN's linears and mixtures on a CPU, mixtures on a GPU) is put
together beside it, for this rank's part only, and packed again by the module's own method. That is what
vLLM's layerwise reload does with whole tensors; this does it with the part that the rank keeps.

Together with `packed` this is all that the project knows of vllm 0.32.0's modules.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from megarlhf.errors import UserError
from megarlhf.sync import packed
from megarlhf.sync.engine_layout import EngineParameter


class Landing:
    """The parameters of one rank of an engine.

    Args:
        model: The live model.
        layout: What the plan says that it consists of.

    Raises:
        UserError: Model and layout do not agree.
    """

    def __init__(self, model: nn.Module, layout: Sequence[EngineParameter]) -> None:
        self._model = model
        self._layout = {parameter.name: parameter for parameter in layout}
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._check()

    def _check(self) -> None:
        known = set()
        for name, expected in self._layout.items():
            module = self._modules.get(expected.module)
            live = getattr(module, name.rpartition(".")[2], None)
            if live is None:
                raise _disagrees(f"has no parameter {name}")
            if tuple(live.shape) != expected.shape and not self._is_packed(expected.module):
                raise _disagrees(f"has {name} as {tuple(live.shape)}, not {expected.shape}")
            known.add(id(live))
        for name, live in self._model.named_parameters():
            if id(live) not in known:
                raise _disagrees(f"has the parameter {name}, which the model's family has not")

    def live(self, name: str) -> nn.Parameter:
        """The parameter as the engine has it, in whatever layout."""
        return getattr(self._modules[self._layout[name].module], name.rpartition(".")[2])

    def is_direct(self, name: str, dtype: torch.dtype) -> bool:
        """Whether elements of that dtype are written straight into live memory."""
        live, module = self.live(name), self._modules[self._layout[name].module]
        return (
            tuple(live.shape) == self._layout[name].shape
            and live.dtype == dtype
            and live.is_contiguous()
            and not packed.is_mixture(module)
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the parameter before it is packed."""
        return self._layout[name].shape

    def has_padding(self, name: str) -> bool:
        """Whether some of its elements come from nowhere."""
        return self._layout[name].kept < torch.Size(self._layout[name].shape).numel()

    def finish(self, values: Mapping[str, torch.Tensor]) -> None:
        """Bring whole modules up to date.

        Args:
            values: For every parameter of them, its live memory or fresh memory with its values.
        """
        for name in dict.fromkeys(self._layout[name].module for name in values):
            mine = {n: v for n, v in values.items() if self._layout[n].module == name}
            module = self._modules[name]
            if packed.is_mixture(module):
                packed.pack_mixture(
                    module, {n.rpartition(".")[2]: value for n, value in mine.items()}
                )
                continue
            for parameter, value in mine.items():
                self._set(module, parameter, value)
            for user in self._users(module):
                if hasattr(user, "cpu_linear"):
                    user.quant_method.process_weights_after_loading(user)

    def _set(self, module: nn.Module, name: str, value: torch.Tensor) -> None:
        live = self.live(name)
        if live.data_ptr() == value.data_ptr():
            return
        if live.shape == value.shape:  # of another dtype
            live.data.copy_(value)
        else:
            setattr(module, name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))

    def _users(self, module: nn.Module) -> list[nn.Module]:
        """The module and those that share a parameter with it (tied embeddings)."""
        weight = getattr(module, "weight", None)
        sharing = [
            other
            for other in self._modules.values()
            if weight is not None and getattr(other, "weight", None) is weight
        ]
        return list(dict.fromkeys([module, *sharing]))

    def readings(self, name: str) -> Iterator[torch.Tensor]:
        """The values that the engine computes with, in the checkpoint's layout, each way it keeps them.

        Memory is read, and what a kernel has packed is asked of the kernel.

        Raises:
            UserError: A kernel's layout cannot be read back.
        """
        module, live = self._modules[self._layout[name].module], self.live(name)
        if packed.is_mixture(module):
            home = self._layout[name].module
            shapes = {
                other.rpartition(".")[2]: parameter.shape
                for other, parameter in self._layout.items()
                if parameter.module == home
            }
            yield packed.unpacked_mixture(module, name.rpartition(".")[2], shapes)
            return
        if tuple(live.shape) == self.shape(name):
            yield live.data
        if hasattr(module, "cpu_linear") and len(self.shape(name)) == 2:  # a matrix, not a bias
            yield packed.unpacked_linear(module, self.shape(name), live.dtype)

    def _is_packed(self, module: str) -> bool:
        return hasattr(self._modules[module], "cpu_linear") or packed.is_mixture(
            self._modules[module]
        )


def _disagrees(what: str) -> UserError:
    return UserError(
        f"the engine {what}: its weights cannot be streamed",
        fix="this version of vLLM lays the model out otherwise: see megarlhf/sync/engine_layout.py",
    )
