"""Compare what two checkpoints compute, each by the code that its kind is for.

Hugging Face's kind runs in transformers, Megatron's in the model that is trained. In fp32, in this
process: for models that fit in its memory.
"""

import torch
import torch.distributed as dist

from megarlhf.errors import UserError
from tools.checkpoint_convert.checkpoints import HUGGING_FACE, Checkpoint

_TOKENS = 48


def largest_difference(a: Checkpoint, b: Checkpoint) -> tuple[float, float]:
    """Between the logits (or a reward model's scores) of both, and the largest logit.

    Raises:
        UserError: They do not compute the same kind of thing.
    """
    kinds = [(c.spec.scalar_head is not None, c.spec.vocab_size) for c in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(
            "one computes "
            + ", the other ".join("scores" if rm else f"{n:,} logits" for rm, n in kinds),
            where=f"{a.directory} and {b.directory}",
            fix="compare models of one kind, or leave out --logits",
        )
    ids = torch.randint(a.spec.vocab_size, (_TOKENS,), generator=torch.Generator().manual_seed(0))
    if ids[-1] == a.spec.export_config.get("pad_token_id"):  # Hugging Face scores the token before
        ids[-1] = (ids[-1] + 1) % a.spec.vocab_size
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
    # Its other kernels leave out what they lack, such as Gemma 2's soft caps.
    model = load(checkpoint.directory, dtype=torch.float32, attn_implementation="eager").eval()
    return model(ids[None]).logits[0]


def _in_megatron(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    from megarlhf.models.build import build_chunks, transformer_config
    from megarlhf.models.rotary import PackedLayout
    from megarlhf.models.weights.loading import load_pretrained
    from megarlhf.parallel.groups import join_world
    from megarlhf.parallel.second_layout import SecondLayout
    from megarlhf.parallel.topology import Topology

    if not dist.is_initialized():
        join_world(0, 1, dist.HashStore())
    spec, topology = checkpoint.spec, Topology(world=1)
    layout = SecondLayout(topology, seed=0)  # each of two checkpoints has its own groups
    with layout.active():
        config = transformer_config(spec, topology, dtype="float32")
        chunks = build_chunks(spec, config, topology, layout.groups, 0)
        load_pretrained(spec, topology, 0, chunks)
        positions = torch.arange(len(ids))
        logits = chunks[0].eval()(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=None,
            packed_seq_params=PackedLayout((len(ids),), positions, len(ids)),
        )[0]
    return logits[-1:] if spec.scalar_head is not None else logits[:, : spec.vocab_size]
