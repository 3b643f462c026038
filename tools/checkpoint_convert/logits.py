"""Compare what two checkpoints compute, each by the code that its kind is for.

Hugging Face's kind runs in transformers, Megatron's in the model that is trained. In fp32, in this
process: for models that fit in its memory.
"""

import torch
import torch.distributed as dist

from tools.checkpoint_convert.checkpoints import HUGGING_FACE, Checkpoint

_TOKENS = 48


def largest_difference(a: Checkpoint, b: Checkpoint) -> tuple[float, float]:
    """Between the logits (or a reward model's scores) of both, and the largest logit."""
    ids = torch.randint(a.spec.vocab_size, (_TOKENS,), generator=torch.Generator().manual_seed(0))
    first, second = (_compute(checkpoint, ids) for checkpoint in (a, b))
    return (first - second).abs().max().item(), first.abs().max().item()


def _compute(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Logits [L, V], or a reward model's score of the whole [1, 1]."""
    with torch.no_grad():
        run = _in_transformers if checkpoint.kind == HUGGING_FACE else _in_megatron
        return run(checkpoint, ids)


def _in_transformers(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    import transformers

    is_scalar = checkpoint.spec.scalar_head is not None
    kind = "AutoModelForSequenceClassification" if is_scalar else "AutoModelForCausalLM"
    load = getattr(transformers, kind).from_pretrained
    model = load(checkpoint.directory, dtype=torch.float32).eval()
    return model(ids[None]).logits[0]


def _in_megatron(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    from megarlhf.models.build import build_chunks, transformer_config
    from megarlhf.models.rotary import PackedLayout
    from megarlhf.models.weights.loading import load_huggingface
    from megarlhf.parallel.groups import join_world, make_groups
    from megarlhf.parallel.pool import free_port
    from megarlhf.parallel.topology import Topology

    if not dist.is_initialized():
        join_world(0, 1, "127.0.0.1", free_port())
    spec, topology = checkpoint.spec, Topology(world=1)
    config = transformer_config(spec, topology, dtype="float32")
    chunks = build_chunks(spec, config, topology, make_groups(topology, seed=0), 0)
    load_huggingface(spec, topology, 0, chunks)
    positions = torch.arange(len(ids))
    logits = chunks[0].eval()(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=None,
        packed_seq_params=PackedLayout((len(ids),), positions, len(ids)),
    )[0]
    return logits[-1:] if spec.scalar_head is not None else logits[:, : spec.vocab_size]
