"""What the ranks run in the tests of parallel/."""

import torch
import torch.distributed as dist

from megarlhf.errors import UserError
from megarlhf.parallel.context import zigzag_indices
from megarlhf.parallel.launched import LaunchedRank
from megarlhf.parallel.logprobs import vocab_parallel_logprobs
from megarlhf.parallel.packed_attention import packed_attention


def megatron_groups(rank, world, layouts):
    """For each (tp, cp, dp, pp), Megatron's groups of each dimension."""
    from megatron.core.parallel_state import RankGenerator

    found = []
    for tp, cp, dp, pp in layouts:
        generator = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order="tp-cp-ep-dp-pp")
        found.append({name: generator.get_ranks(name) for name in ("tp", "cp", "dp", "pp")})
    return found


def megatron_layers(rank, world, cases):
    """For each (layers, pp, vpp), the first layer of every [stage][chunk]."""
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    found = []
    for layers, pp, vpp in cases:
        config = TransformerConfig(
            num_layers=layers,
            hidden_size=8,
            num_attention_heads=1,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
            pipeline_dtype=torch.float32,
            overlap_p2p_comm=vpp > 1,
            batch_p2p_comm=False,
        )
        found.append(
            [
                [
                    get_transformer_layer_offset(config, chunk if vpp > 1 else None, stage)
                    for chunk in range(vpp)
                ]
                for stage in range(pp)
            ]
        )
    return found


def shard_logprobs(rank, world, shards, targets, upstream, settings):
    """Log-probabilities, entropy and this rank's gradient, for its columns of the logits."""
    logits = shards[rank].clone().requires_grad_()
    logprobs, entropy = vocab_parallel_logprobs(
        logits, targets, group=dist.group.WORLD, with_entropy=True, **settings
    )
    torch.autograd.backward((logprobs, entropy), (upstream, upstream.flip(0)))
    return logprobs.detach(), entropy.detach(), logits.grad


def ring_attention(rank, world, tensors, lengths, scale, scoring=None):
    """This rank's part of the output and of the gradients of query, key and value."""
    mine = zigzag_indices(lengths, rank, world)
    *leaves, upstream = (tensor[mine].requires_grad_() for tensor in tensors)
    local = [length // world for length in lengths]
    out = packed_attention(*leaves, local, scale=scale, group=dist.group.WORLD, scoring=scoring)
    out.backward(upstream.detach())
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def agree(rank, world):
    """What `LaunchedRank.first` and `any` answer on each rank."""
    launched = LaunchedRank(rank, world)

    def refuse():
        raise UserError("no such file", where="data.train", fix="give one")

    try:
        launched.first(refuse)
        text = "accepted"
    except UserError as error:
        text = str(error)
    drawn = launched.first(lambda: f"drawn by {rank}")
    return text, drawn, launched.any(rank == world - 1), launched.any(False)
