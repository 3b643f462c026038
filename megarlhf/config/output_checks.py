"""Rules for the section ``output``."""

from importlib.util import find_spec

from megarlhf.config.schema import OutputConfig
from megarlhf.errors import UserError


def check_output(config: OutputConfig) -> None:
    """The packages are there that write what is asked for.

    Raises:
        UserError: One is missing.
    """
    if config.wandb is not None and find_spec("wandb") is None:
        raise UserError(
            "the package wandb is not installed",
            where="output.wandb",
            fix="pip install wandb, or leave output.wandb out",
        )
