"""One row an algorithm: everything else asks the row, never the name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from megarlhf.algo import advantages, surrogates
from megarlhf.algo.credit import Credit, Scores
from megarlhf.algo.surrogates import Surrogate
from megarlhf.algo.user_file import load_object
from megarlhf.config.schema import AlgorithmConfig
from megarlhf.errors import UserError

# Settings that belong to an algorithm: None in the configuration stands for the row's value, or this.
COMMON_DEFAULTS: Mapping[str, Any] = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "aggregation": "sequence_mean",
    "kl_coef": 0.001,
    "kl_in": "loss",
    "kl_estimator": "k3",
    "advantage_normalization": "none",
    "dynamic_filtering": False,
    "overlong_buffer": 0.0,
}


@dataclass(frozen=True)
class Algorithm:
    """An RL algorithm. Pickled by name: the process that receives it looks it up for itself.

    Attributes:
        name: As in ``algorithm.name``.
        estimate: From scores and settings to advantages; see `credit`.
        surrogate: The loss at each token; see `surrogates`.
        min_samples: Samples a prompt it needs at least.
        needs_critic: Whether its estimate reads ``Scores.values``.
        discounts: Whether its estimate reads ``algorithm.gamma``.
        defaults: What the row sets of `COMMON_DEFAULTS`.
        file: The user's file that defines it; None for ours.
    """

    name: str
    estimate: Callable[[Scores, AlgorithmConfig], Credit]
    surrogate: Surrogate = surrogates.clipped
    min_samples: int = 1
    needs_critic: bool = False
    discounts: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None

    def __reduce__(self) -> tuple[Callable[..., "Algorithm"], tuple[str, str | None]]:
        return find, (self.name, self.file)


# As in OpenRLHF: the KL is a reward of each token, and every token counts the same.
_KL_REWARD = {"kl_in": "reward", "kl_estimator": "k1", "kl_coef": 0.01, "aggregation": "token_mean"}

ALGORITHMS = {
    row.name: row
    for row in (
        # Shao et al. 2024, arXiv:2402.03300
        Algorithm("grpo", advantages.grpo, min_samples=2),
        # Liu et al. 2025, arXiv:2503.20783
        Algorithm(
            "dr_grpo",
            advantages.dr_grpo,
            min_samples=2,
            defaults={"aggregation": "sequence_sum", "kl_coef": 0.0},
        ),
        # Ahmadian et al. 2024, arXiv:2402.14740
        Algorithm("rloo", advantages.rloo, min_samples=2, defaults=_KL_REWARD),
        # Hu et al. 2025, arXiv:2501.03262
        Algorithm(
            "reinforce_plus_plus",
            advantages.reinforce_plus_plus,
            discounts=True,
            defaults={**_KL_REWARD, "advantage_normalization": "std"},
        ),
        # The same paper; the KL is in the loss there, and in OpenRLHF's scripts
        Algorithm(
            "reinforce_plus_plus_baseline",
            advantages.dr_grpo,
            min_samples=2,
            defaults={
                "aggregation": "token_mean",
                "advantage_normalization": "std",
                "kl_estimator": "k2",
            },
        ),
        # Schulman et al. 2017, arXiv:1707.06347
        Algorithm(
            "ppo",
            advantages.gae,
            needs_critic=True,
            discounts=True,
            defaults={**_KL_REWARD, "advantage_normalization": "std"},
        ),
        # Yu et al. 2025, arXiv:2503.14476; the buffer is its 4096 of 20480 tokens
        Algorithm(
            "dapo",
            advantages.grpo,
            min_samples=2,
            defaults={
                "clip_high": 0.28,
                "aggregation": "token_mean",
                "kl_coef": 0.0,
                "dynamic_filtering": True,
                "overlong_buffer": 0.2,
            },
        ),
        # Zheng et al. 2025, arXiv:2507.18071
        Algorithm(
            "gspo",
            advantages.grpo,
            surrogates.sequence_clipped,
            min_samples=2,
            defaults={"clip_low": 3e-4, "clip_high": 4e-4, "kl_coef": 0.0},
        ),
        # MiniMax 2025, arXiv:2506.13585, which gives no clip_high
        Algorithm(
            "cispo",
            advantages.grpo,
            surrogates.clipped_weight,
            min_samples=2,
            defaults={
                "clip_low": 1.0,
                "clip_high": 4.0,
                "aggregation": "token_mean",
                "kl_coef": 0.0,
            },
        ),
    )
}


def find(name: str, file: str | None = None) -> Algorithm:
    """The row of an algorithm: the file's, where one is given, or ours of that name.

    Raises:
        UserError: There is none (the nearest known is named), or the file defines no right one.
    """
    if file is not None:
        return _from_file(file)
    if name not in ALGORITHMS:
        # Of two names that are as near, the first row's.
        likeness = {known: SequenceMatcher(None, name, known).ratio() for known in ALGORITHMS}
        near = max(likeness, key=likeness.__getitem__)
        found = likeness[near] >= 0.6
        hint = f"did you mean {near}?" if found else f"known: {', '.join(ALGORITHMS)}"
        raise UserError(f"there is no algorithm {name!r}", where="algorithm.name", fix=hint)
    return ALGORITHMS[name]


def filled(config: AlgorithmConfig) -> AlgorithmConfig:
    """The configuration with the algorithm's own value wherever it was left to it (None).

    Raises:
        UserError: As `find`.
    """
    values = {**COMMON_DEFAULTS, **find(config.name, config.file).defaults}
    missing = {key: value for key, value in values.items() if getattr(config, key) is None}
    return replace(config, **missing)


def _from_file(file: str) -> Algorithm:
    row = load_object(file, "ALGORITHM", where="algorithm.file")
    if not isinstance(row, Algorithm):
        raise UserError(
            f"ALGORITHM is a {type(row).__name__}, not a megarlhf.algo.registry.Algorithm",
            where=f"algorithm.file={file}",
            fix="define ALGORITHM = Algorithm(name=..., estimate=...)",
        )
    unknown = sorted(row.defaults.keys() - COMMON_DEFAULTS.keys())
    if unknown:
        raise UserError(
            f"an algorithm has no default for {', '.join(unknown)}",
            where=f"algorithm.file={file}",
            fix=f"set it in the configuration; defaults may set {', '.join(COMMON_DEFAULTS)}",
        )
    return replace(row, file=str(Path(file).resolve()))
