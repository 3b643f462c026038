"""What can be streamed into vLLM."""

from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.sync.engine_layout import EngineTopology, engine_parameters

# What vllm 0.32.0 reads of a router with an expert bias, and Hugging Face does not.
ROUTER = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def check_streamable(spec: ModelSpec, engine: EngineTopology) -> None:
    """The model can be streamed into such engines, and they take it for the same model.

    Raises:
        UserError: See `engine_parameters`; or vLLM would route tokens otherwise than the trainer.
    """
    if spec.family.constants.get("moe_router_enable_expert_bias"):
        missing = {key: value for key, value in ROUTER.items() if key not in spec.hf_config}
        if missing:
            raise UserError(
                f"config.json does not say {' and '.join(missing)}, and vLLM would not take what "
                "Hugging Face takes then",
                where=str(spec.path),
                fix="add " + ", ".join(f'"{key}": "{value}"' for key, value in missing.items()),
            )
    engine_parameters(spec, engine, 0)
