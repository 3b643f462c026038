"""A Megatron-Core GPTModel for a model spec and a topology, on this rank."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from megarlhf.errors import UserError
from megarlhf.models.rotary import LatentRotaryEmbedding, PackedRotaryEmbedding, frequencies
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel import device
from megarlhf.parallel.topology import Topology

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer import TransformerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

# Settings of the model's construction that are no fields of Megatron's TransformerConfig.
_BUILD_SETTINGS = (
    "vocab_size",
    "max_sequence_length",
    "tied_embeddings",
    "activation_func",
    "score_scale",
    "embedding_scale",
    "logit_soft_cap",
    "attention_soft_cap",
    "post_norms",
)
_ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}
_RECOMPUTE = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


def transformer_config(
    spec: ModelSpec,
    topology: Topology,
    *,
    dtype: str,
    recompute: str = "none",
    aux_loss_coef: float = 0.0,
    z_loss_coef: float = 0.0,
    experts: str = "auto",
) -> "TransformerConfig":
    """Megatron's configuration for a model under a layout.

    Raises:
        UserError: The experts cannot be grouped, though they should be.
    """
    device.prepare()
    from megatron.core.transformer import MLATransformerConfig, TransformerConfig

    settings = {k: v for k, v in spec.settings.items() if k not in _BUILD_SETTINGS}
    is_latent = spec.settings.get("multi_latent_attention", False)
    return (MLATransformerConfig if is_latent else TransformerConfig)(
        **settings,
        softmax_scale=None if is_latent else _softmax_scale(spec),
        activation_func=_ACTIVATIONS[str(spec.settings["activation_func"])],
        tensor_model_parallel_size=topology.tp,
        pipeline_model_parallel_size=topology.pp,
        virtual_pipeline_model_parallel_size=topology.vpp if topology.vpp > 1 else None,
        pipeline_model_parallel_layout=_pipeline_layout(spec, topology),
        context_parallel_size=topology.cp,
        expert_model_parallel_size=topology.ep,
        sequence_parallel=topology.sequence_parallel,
        params_dtype=DTYPES[dtype],
        pipeline_dtype=DTYPES[dtype],
        bf16=dtype == "bfloat16",
        variable_seq_lengths=topology.pp > 1,  # packs differ in length
        moe_token_dispatcher_type="alltoall",  # variable lengths want it even without experts
        moe_grouped_gemm=_are_grouped(spec, topology, DTYPES[dtype], experts),
        # Hugging Face's routers compute in float32, whatever the model does.
        moe_router_dtype="fp64" if dtype == "float64" else "fp32",
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=aux_loss_coef,
        moe_z_loss_coeff=z_loss_coef or None,
        # Not both; and over gloo a batch is silently wrong.
        batch_p2p_comm=torch.cuda.is_available() and topology.vpp == 1,
        overlap_p2p_comm=topology.vpp > 1,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bias_dropout_fusion=False,
        calculate_per_token_loss=True,  # the engine divides, once, by the global count
        use_cpu_initialization=False,
        perform_initialization=False,  # weights are always loaded
        gradient_accumulation_fusion=False,
        **_RECOMPUTE[recompute],
    )


def _softmax_scale(spec: ModelSpec) -> float:
    """Of the scores. A factor of sine and cosine is in both queries and keys: here it is squared."""
    head_dim = int(spec.settings["kv_channels"])
    scale = spec.settings.get("score_scale") or head_dim**-0.5
    return scale * frequencies(spec.full_config, head_dim)[1] ** 2


def _are_grouped(spec: ModelSpec, topology: Topology, dtype: torch.dtype, experts: str) -> bool:
    """Whether a rank computes its experts together: on a GPU, where that is possible."""
    if not spec.num_experts or experts == "sequential":
        return False
    if experts == "auto" and not torch.cuda.is_available():
        return False
    from megarlhf.models.grouped_experts import ALIGNMENT, can_group

    widths = int(spec.settings["hidden_size"]), spec.dims["expert_ffn"] // topology.tp
    possible = can_group(dtype, *widths)
    if experts == "grouped" and not possible:
        raise UserError(
            f"experts of {widths[0]} by {widths[1]} {dtype} elements cannot be computed together: torch "
            f"wants bfloat16, and rows of a multiple of {ALIGNMENT} bytes",
            where="model.experts",
            fix="leave model.experts=auto",
        )
    return possible


def _pipeline_layout(spec: ModelSpec, topology: Topology) -> list[list[str]] | None:
    """Megatron's description of a pipeline whose chunks differ in their numbers of layers."""
    counts = topology.layer_counts(spec.num_layers)
    if len(set(counts)) == 1:
        return None
    chunks = [["decoder"] * count for count in counts]
    return [["embedding", *chunks[0]], *chunks[1:-1], [*chunks[-1], "loss"]]


def build_chunks(
    spec: ModelSpec,
    config: "TransformerConfig",
    topology: Topology,
    groups: "ProcessGroupCollection",
    rank: int,
) -> "list[GPTModel]":
    """This rank's model chunks (one, or ``vpp`` of them), parameters allocated but not set."""
    from megatron.core.models.gpt import GPTModel

    from megarlhf.models.layers import Extras, block_spec
    from megarlhf.models.scalar_head import ScalarHead

    place = topology.coordinates(rank)
    where = device.prepare()
    angles = frequencies(spec.full_config, config.kv_channels)
    extras = Extras(
        post_norms=bool(spec.settings.get("post_norms")),
        attention_soft_cap=spec.settings.get("attention_soft_cap"),
    )
    chunks = []
    for index, layers in enumerate(topology.layers_of(spec.num_layers, place.pp)):
        stage = index if topology.vpp > 1 else None
        model = GPTModel(
            config,
            block_spec(config, [spec.is_mixture(layer) for layer in layers], extras),
            vocab_size=-(-spec.vocab_size // topology.tp) * topology.tp,
            max_sequence_length=int(spec.settings["max_sequence_length"]),
            pre_process=place.pp == 0 and index == 0,
            post_process=place.pp == topology.pp - 1 and index == topology.vpp - 1,
            share_embeddings_and_output_weights=spec.tied,
            position_embedding_type="rope",
            pg_collection=groups,
            vp_stage=stage,
        )
        if config.multi_latent_attention:
            for layer in model.decoder.layers:
                layer.self_attention.rotary_pos_emb = LatentRotaryEmbedding(*angles)
        else:
            model.rotary_pos_emb = PackedRotaryEmbedding(angles[0])
        if spec.scalar_head is not None and model.post_process:
            model.output_layer = ScalarHead(config, groups.tp)
        _change_ends(model, spec, config.params_dtype)
        chunks.append(model.to(where))
    _mark_tensor_parallel(spec, topology, rank, chunks)
    return chunks


def _change_ends(model: "GPTModel", spec: ModelSpec, dtype: torch.dtype) -> None:
    """What some families do to the embedding's output and to the logits, element by element."""
    if model.pre_process and (scale := spec.settings.get("embedding_scale")):
        factor = torch.tensor(scale).to(dtype).item()  # rounded as Hugging Face's is
        model.embedding.register_forward_hook(lambda _, __, hidden: hidden * factor)
    cap = spec.settings.get("logit_soft_cap")
    if model.post_process and cap and spec.scalar_head is None:

        def bend(_: Any, __: Any, output: tuple) -> tuple:
            return cap * torch.tanh(output[0] / cap), *output[1:]

        model.output_layer.register_forward_hook(bend)


def _mark_tensor_parallel(
    spec: ModelSpec, topology: Topology, rank: int, chunks: "list[GPTModel]"
) -> None:
    """Tell Megatron which parameters are cut.

    It does so itself only when it initializes weights. A parameter without the mark counts as
    replicated: its gradient on the other tensor-parallel ranks would be left out of the norm.
    """
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

    live = [dict(chunk.named_parameters()) for chunk in chunks]
    for parameter in parameters_of(spec, topology, rank):
        tensor = live[parameter.chunk][parameter.name]
        marked = hasattr(tensor, "tensor_model_parallel")  # biases are
        if parameter.partition_dim is not None and not marked:
            set_tensor_model_parallel_attributes(tensor, True, parameter.partition_dim, 1)
