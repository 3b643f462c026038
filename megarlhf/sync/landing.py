"""Where rectangles land in a live engine, and what has to be done with a module once it has all.

Most parameters are live memory in the checkpoint's layout: a rectangle is written straight into it. What
a kernel keeps in a layout of its own (oneDNN's linears and mixtures on a CPU, mixtures on a GPU) is put
together beside it, for this rank's part only, and packed again by the module's own method. That is what
vLLM's layerwise reload does with whole tensors; this does it with the part that the rank keeps.

Together with `packed` and `latent` this is all that the project knows of vllm 0.32.0's modules.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import nn

from megarlhf.errors import UserError
from megarlhf.sync import latent, packed
from megarlhf.sync.engine_layout import EngineParameter


class Landing:
    """The parameters of one rank of an engine.

    Args:
        model: The live model.
        layout: What the plan says that it consists of.
        untouched: Names of parameters that it has beside, and keeps.

    Raises:
        UserError: Model and layout do not agree.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Sequence[EngineParameter],
        untouched: Collection[str] = (),
    ) -> None:
        self._model = model
        self._layout = {parameter.name: parameter for parameter in layout}
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._latent = self._latent_attention()
        self._check(untouched)
        self._users = self._packed_users()

    def _check(self, untouched: Collection[str]) -> None:
        known = {
            id(p) for module in self._latent.values() for p in module.parameters(recurse=False)
        }
        for name, expected in self._layout.items():
            module = self._modules.get(expected.module)
            live = getattr(module, name.rpartition(".")[2], None)
            if live is None:
                raise _disagrees(f"has no parameter {name}")
            if tuple(live.shape) != expected.shape and not self._is_packed(expected.module):
                raise _disagrees(f"has {name} as {tuple(live.shape)}, not {expected.shape}")
            known.add(id(live))
        for name, live in self._model.named_parameters():
            if id(live) not in known and name not in untouched:
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
        modules: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in values.items():
            modules.setdefault(self._layout[name].module, {})[name] = value
        for name, mine in modules.items():
            module = self._modules[name]
            if packed.is_mixture(module):
                packed.pack_mixture(
                    module, {n.rpartition(".")[2]: value for n, value in mine.items()}
                )
                continue
            for parameter, value in mine.items():
                self._set(module, parameter, value)
            for user in self._users[name]:
                user.quant_method.process_weights_after_loading(user)
            if name in self._latent:
                latent.absorb(self._latent[name])

    def _set(self, module: nn.Module, name: str, value: torch.Tensor) -> None:
        live = self.live(name)
        if live.data_ptr() == value.data_ptr():
            return
        if live.shape == value.shape:  # of another dtype
            live.data.copy_(value)
        else:
            setattr(module, name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))

    def _packed_users(self) -> dict[str, list[nn.Module]]:
        """By module: it and those that share its weight (tied embeddings), as far as they pack it."""
        sharing: dict[int, list[nn.Module]] = {}
        for module in dict.fromkeys(self._modules.values()):
            if hasattr(module, "cpu_linear"):
                sharing.setdefault(id(module.weight), []).append(module)
        homes = {parameter.module for parameter in self._layout.values()}
        return {
            name: sharing.get(id(getattr(self._modules[name], "weight", None)), [])
            for name in homes
        }

    def _latent_attention(self) -> dict[str, nn.Module]:
        """Attention that keeps products of a module's weight, by that module's name."""
        homes = {id(self._modules.get(p.module)): p.module for p in self._layout.values()}
        found = [module for module in self._modules.values() if latent.is_latent(module)]
        return {
            homes[id(attention.kv_b_proj)]: attention
            for attention in found
            if id(attention.kv_b_proj) in homes
        }

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
        if self._layout[name].module in self._latent:
            yield latent.projection(self._latent[self._layout[name].module])

    def _is_packed(self, module: str) -> bool:
        return hasattr(self._modules[module], "cpu_linear") or packed.is_mixture(
            self._modules[module]
        )


def _disagrees(what: str) -> UserError:
    return UserError(
        f"the engine {what}: its weights cannot be streamed",
        fix="this version of vLLM lays the model out otherwise: see megarlhf/sync/engine_layout.py",
    )
