"""Rules about adapters."""

from megarlhf.config.schema import LoraConfig, ModelConfig, RLConfig
from megarlhf.errors import UserError


def check_lora(lora: LoraConfig, model: ModelConfig) -> None:
    """The settings of ``lora`` fit together, and to the model's.

    Raises:
        UserError: They do not.
    """
    if not lora.is_on:
        if lora != LoraConfig():
            raise UserError(
                "is 0, though other settings of lora are given: the whole model would be trained",
                where="lora.rank",
                fix="set lora.rank (16, say), or leave the other settings out",
            )
        return
    own = LoraConfig(
        path=lora.path, dropout=lora.dropout, base=lora.base, double_quant=lora.double_quant
    )
    if lora.path is not None and lora != own:
        raise UserError(
            "its files say what the adapters are",
            where="lora.path",
            fix="leave lora.rank, lora.alpha, lora.rslora and lora.target_modules out",
        )
    if not lora.target_modules:
        raise UserError("is empty", where="lora.target_modules", fix="use all-linear")
    if lora.double_quant and lora.base == "full":
        raise UserError(
            "is of a base in 4 bits",
            where="lora.double_quant",
            fix="set lora.base=nf4, or leave it out",
        )
    if lora.base != "full" and model.experts == "grouped":
        raise UserError(
            f"experts with lora.base={lora.base} are computed one by one",
            where="model.experts",
            fix="leave model.experts=auto",
        )


def check_lora_in_rl(config: RLConfig) -> None:
    """The settings of ``lora`` fit to those of a whole RL run.

    Raises:
        UserError: They do not.
    """
    check_lora(config.lora, config.model)
    if config.lora.is_on and config.cluster.reference_ranks is not None:
        raise UserError(
            "with lora the reference is the actor's own model with its adapters off: it needs no ranks",
            where="cluster.reference_ranks",
            fix="leave it out",
        )
