"""Rules between an algorithm and the settings, checked before anything starts."""

from megarlhf.algo.registry import Algorithm, filled
from megarlhf.config.schema import AlgorithmConfig, RLConfig
from megarlhf.errors import UserError


def check_algorithm(row: Algorithm, config: RLConfig) -> None:
    """Checks what the algorithm asks of the settings, and its settings of each other.

    Raises:
        UserError: A rule is broken; names the key and what to change.
    """
    settings = filled(config.algorithm)
    _check_samples(row, settings, config.rollout.samples_per_prompt)
    _check_row(row, settings)
    _check_settings(settings)


def _check_samples(row: Algorithm, settings: AlgorithmConfig, samples: int) -> None:
    if samples < row.min_samples:
        raise UserError(
            f"must be at least {row.min_samples} for {row.name}, which compares the samples of a "
            f"prompt, got {samples}",
            where="rollout.samples_per_prompt",
            fix="raise rollout.samples_per_prompt, or choose another algorithm.name",
        )
    if settings.dynamic_filtering and samples < 2:
        raise UserError(
            f"compares the samples of a prompt, of which there is {samples}",
            where="algorithm.dynamic_filtering",
            fix="raise rollout.samples_per_prompt, or set algorithm.dynamic_filtering=false",
        )


def _check_row(row: Algorithm, settings: AlgorithmConfig) -> None:
    if settings.gamma != 1.0 and not row.discounts:
        raise UserError(
            f"{row.name} does not discount: it gives one advantage to all tokens of a response",
            where="algorithm.gamma",
            fix="leave algorithm.gamma at 1, or use reinforce_plus_plus",
        )


def _check_settings(settings: AlgorithmConfig) -> None:
    if settings.kl_target is not None and settings.kl_coef == 0:
        raise UserError(
            "has no effect with algorithm.kl_coef=0: the coefficient is multiplied at each step",
            where="algorithm.kl_target",
            fix="set algorithm.kl_coef to begin with, or leave algorithm.kl_target out",
        )
    if settings.correction_low > settings.correction_high:
        raise UserError(
            f"exceeds algorithm.correction_high ({settings.correction_high}), "
            f"got {settings.correction_low}",
            where="algorithm.correction_low",
            fix="lower it, or raise algorithm.correction_high",
        )
