"""What a rank's modules put out and its gradients, while it trains: taken by hooks, on the rank."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megarlhf.parity.names import EMBEDDING, FINAL_NORM, LOGITS, gradient_key, layer, output_key


@contextmanager
def module_outputs(chunks: Sequence[nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the outputs of a rank's embedding, layers, final norm and output layer.

    Args:
        chunks: This rank's model chunks (not wrapped).

    Yields:
        By `output_key`, filled as micro-batches pass: [T, H] this rank's tokens under context and
        sequence parallelism, or [T, Vp] this rank's columns for the logits. Copies on the CPU.
    """
    found: dict[str, torch.Tensor] = {}
    seen: dict[str, int] = defaultdict(int)
    handles = []

    def watch(module: nn.Module, name: str, batch_dim: int = 1) -> None:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            # A copy: Megatron empties what it has sent to the next stage.
            copy = tensor.detach().select(batch_dim, 0).to("cpu", copy=True).contiguous()
            found[output_key(name, seen[name])] = copy
            seen[name] += 1

        handles.append(module.register_forward_hook(keep))

    for chunk in chunks:
        if chunk.pre_process:
            watch(chunk.embedding, EMBEDDING)
        for block in chunk.decoder.layers:
            name = layer(block.layer_number - 1)
            watch(block.self_attention, name + ".self_attn")
            watch(block.mlp, name + ".mlp")
            watch(block, name)
        if chunk.post_process:
            watch(chunk.decoder.final_layernorm, FINAL_NORM)
            watch(chunk, LOGITS, batch_dim=0)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def gradients(chunks: Sequence[nn.Module], wrapped: Sequence[Any]) -> dict[str, torch.Tensor]:
    """This rank's gradients once Megatron has reduced them, by `gradient_key`; copies on the CPU.

    The distributed optimizer leaves on each data-parallel rank only its own part of a buffer whole:
    the parts are gathered first. Collective over the ranks.

    Args:
        chunks: This rank's model chunks.
        wrapped: The same in Megatron's DistributedDataParallel.
    """
    for model in wrapped:
        if model.ddp_config.use_distributed_optimizer:
            for buffer in (*model.buffers, *model.expert_parallel_buffers):
                for bucket in buffer.buckets:
                    _gather_parts(bucket.grad_data, buffer.data_parallel_group)
    return {
        gradient_key(chunk, name): parameter.main_grad.to("cpu", copy=True).contiguous()
        for chunk, module in enumerate(chunks)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _gather_parts(data: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Fill a buffer of which every rank of the group has one of equal consecutive parts."""
    if group.size() > 1:
        parts = [torch.empty_like(part) for part in data.chunk(group.size())]
        dist.all_gather(parts, data.chunk(group.size())[group.rank()].clone(), group=group)
        torch.cat(parts, out=data)
