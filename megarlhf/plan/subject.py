"""What is planned: a run's configuration, the machines, and the shapes of its models."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megarlhf.config import loader
from megarlhf.config.layout_checks import check_parallel
from megarlhf.config.schema import KDConfig, OfflineConfig, RLConfig
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.plan.hardware import GIB, Calibration, Gpu, gpu
from megarlhf.trainer.methods import METHODS

OFFLINE = {method.name: config for config, method in METHODS.items()}
KNOWN_MODELS = Path(__file__).parents[2] / "configs" / "models"  # config.json of public models


@dataclass(frozen=True)
class Subject:
    """What is planned.

    Attributes:
        name: Of the plan, for people.
        config: The run's configuration.
        gpu: What it runs on.
        nodes: How many machines.
        gpus_per_node: Of each.
        calibration: What data sheets do not say.
        lengths: Mean tokens of a prompt and of a response, for the time; memory is for the longest.
        skew: Of a mixture's routing: see `Received`.
        limit_gib: What of each GPU's memory the run may take; None: all of it.
        exact: Run all layers, however many.
        models: Where ``config.json`` files of models are that are not here: a directory of
            directories; or the directory of the one model.
    """

    name: str
    config: RLConfig | OfflineConfig
    gpu: Gpu
    nodes: int
    gpus_per_node: int
    calibration: Calibration
    lengths: tuple[int, int]
    skew: float = 1.0
    limit_gib: float | None = None
    exact: bool = False
    models: Path = KNOWN_MODELS

    @property
    def gpus(self) -> int:
        """All that there are."""
        return self.nodes * self.gpus_per_node

    @property
    def memory(self) -> int:
        """Bytes of each GPU that the run may take."""
        return int(min(self.gpu.memory_gib, self.limit_gib or self.gpu.memory_gib) * GIB)

    def shape_of(self, path: str) -> Path:
        """The directory of a model's ``config.json``: its own, or that of a known public model.

        Raises:
            UserError: There is none.
        """
        own, named = Path(path), self.models / Path(path).name.lower()
        for directory in (self.models, own, named):
            if (directory / "config.json").is_file():
                return directory
        raise UserError(
            f"no config.json of {path}: neither {own} nor {named} has one",
            where="model.path",
            fix="give the directory of its config.json: --model-config DIR (no weights are needed)",
        )


def config_class(file: Path | None, method: str | None) -> type:
    """Of which command a configuration is.

    Args:
        file: Its directory's name or its own has the method in it, such as configs/dpo/.
        method: In place of that: sft, rm, prm, dpo, kto, kd or rl.
    """
    names = " ".join(file.parts[-2:]) if file else ""
    words = [method] if method else re.split(r"[^a-z0-9]+", names.lower())
    return next((OFFLINE[word] for word in words if word in OFFLINE), RLConfig)


def read_subject(
    file: Path | None,
    overrides: Sequence[str],
    *,
    calibration: Calibration,
    method: str | None = None,
    models: Path | None = None,
    lengths: tuple[int | None, int | None] = (None, None),
    skew: float = 1.0,
    limit_gib: float | None = None,
    exact: bool = False,
) -> Subject:
    """Read a configuration and check what can be checked without weights and data.

    Raises:
        UserError: Something is wrong with it, or it names no GPU.
    """
    config = loader.load(config_class(file, method), file, overrides)
    cluster = config.cluster
    if cluster.gpu is None:
        raise UserError(
            "a plan needs to know the machines",
            where="cluster.gpu",
            fix="add cluster.gpu=h100 cluster.nodes=1 cluster.gpus_per_node=8, for example",
        )
    if isinstance(config, RLConfig):
        longest = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    else:
        longest = config.data.max_tokens, 0
    mean = tuple(given or most for given, most in zip(lengths, longest, strict=True))
    subject = Subject(
        name=str(file) if file else "a run",
        config=config,
        gpu=gpu(cluster.gpu),
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        calibration=calibration,
        lengths=(mean[0], mean[1]),
        skew=skew,
        limit_gib=limit_gib,
        exact=exact,
        models=models or KNOWN_MODELS,
    )
    _check_layout(subject)
    return subject


def _check_layout(subject: Subject) -> None:
    config = subject.config
    spec = ModelSpec.read(subject.shape_of(config.model.path))
    ranks, name = subject.gpus, "the machines' number of GPUs"
    if isinstance(config, RLConfig):
        ranks, name = config.cluster.actor_ranks, "cluster.actor_ranks"
    check_parallel(config.model.parallel, spec.hf_config, ranks, name)
    if isinstance(config, KDConfig):
        teacher = ModelSpec.read(subject.shape_of(config.teacher.path))
        layout = config.teacher.parallel
        check_parallel(layout, teacher.hf_config, ranks, name, "teacher.parallel")
