"""``megarlhf parity``: run one batch through every layout and say which computes something else."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megarlhf.config.schema import OptimizerConfig
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.loading import HuggingFaceFiles
from megarlhf.parallel.pool import RankFailure, RankPool
from megarlhf.parity import names
from megarlhf.parity.assemble import LayoutRun
from megarlhf.parity.auxiliary import NONE as NO_ROUTING_LOSSES
from megarlhf.parity.auxiliary import RoutingLosses
from megarlhf.parity.batch import make_batch
from megarlhf.parity.compare import Comparison, Reference, compare, make_reference
from megarlhf.parity.huggingface import run_huggingface
from megarlhf.parity.layouts import MAX_RANKS, ONE_RANK, Layout, check, default_layouts
from megarlhf.parity.rank import run as run_rank
from megarlhf.parity.records import Request, Setup
from megarlhf.parity.report import Table, summary, write_json
from megarlhf.parity.thresholds import Thresholds

OFF, RANK_FAILED = 1, 3  # exit statuses
OPTIMIZER = OptimizerConfig(lr=1e-3)


@dataclass(frozen=True)
class Settings:
    """What the command line says.

    Attributes:
        model: The Hugging Face directory.
        layouts: Names; none: the model's default ones.
        dtype: Of parameters and computation.
        steps: Optimizer steps; float64 has none.
        max_ranks: Most ranks of a layout.
        seed: Of the batch.
        routing: Weights of a mixture's auxiliary losses.
        tolerance: What the thresholds are multiplied by.
        timeout_s: The longest a layout may take.
        json: Where to write everything, if anywhere.
    """

    model: Path
    layouts: tuple[str, ...] = ()
    dtype: str = "float32"
    steps: int = 20
    max_ranks: int = MAX_RANKS
    seed: int = 0
    routing: RoutingLosses = NO_ROUTING_LOSSES
    tolerance: float = 1.0
    timeout_s: float = 600.0
    json: Path | None = None


def run_parity(
    settings: Settings,
    *,
    setup: Setup | None = None,
    pool: RankPool | None = None,
    write: Callable[[str], Any] = lambda text: print(text, end="", flush=True),
) -> int:
    """Measure every layout; returns the exit status.

    Args:
        settings: What to measure.
        setup: For tests: every rank enters it before it builds the model (not for one rank's
            reference).
        pool: Ranks to use; by default started here and ended here.
        write: Where the table goes.

    Returns:
        0, or 1 when a layout is off, or 3 when a rank died, hung or raised.

    Raises:
        UserError: The model or a layout is not possible; nothing was started.
    """
    spec = ModelSpec.read(settings.model)
    HuggingFaceFiles(spec.path)  # the weights are there
    settings.routing.check(spec)
    layouts = choose_layouts(settings, spec)
    if settings.json is not None:
        _check_writable(settings.json)
    began, rows, failure = time.monotonic(), [], None
    table = Table([layout.name for layout in layouts], write)
    thresholds = Thresholds.of(settings.dtype, spec.hf_config, settings.tolerance)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="megarlhf-parity-")))
        if pool is None:
            pool = RankPool(timeout_s=settings.timeout_s, log_directory=scratch)
            stack.enter_context(pool)
        session = _Session(settings, spec, layouts, thresholds, scratch, pool, setup)
        try:
            for layout in layouts:
                table.start(layout.name)
                rows.append(session.measure(layout))
                table.finish(rows[-1])
        except RankFailure as error:
            write("FAILED\n")
            if isinstance(error.__cause__, UserError):
                raise
            failure = f"layout {layout.name}: {error}"
            print(f"megarlhf: error: {failure}", file=sys.stderr)
    if settings.json is not None:
        asked = {**asdict(settings), "model": str(settings.model), "json": str(settings.json)}
        write_json(settings.json, asked, thresholds, rows, failure)
    if failure is not None:
        return RANK_FAILED
    write(summary(rows, time.monotonic() - began) + "\n")
    return 0 if all(row.ok for row in rows) else OFF


def _check_writable(file: Path) -> None:
    """What takes minutes to measure has somewhere to go."""
    try:
        file.open("a").close()
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror}",
            where="--json",
            fix="give a file in a directory that exists and that you can write to",
        ) from None


def choose_layouts(settings: Settings, spec: ModelSpec) -> list[Layout]:
    """The layouts to run: one rank, then those asked for or the model's default ones.

    Raises:
        UserError: One of them is not possible.
    """
    import torch

    most, gpus = settings.max_ranks, torch.cuda.device_count()
    if not settings.layouts:
        chosen = default_layouts(spec.hf_config, min(most, gpus) if gpus else most)
    else:
        chosen = [Layout.parse(name) for name in settings.layouts]
    for layout in chosen:
        check(layout, spec.hf_config, most)
        if gpus and layout.world > gpus:
            raise UserError(
                f"needs {layout.world} GPUs, this machine has {gpus}",
                where=f"layout {layout.name}",
                fix="leave it out, or hide the GPUs to run on the CPU: CUDA_VISIBLE_DEVICES=",
            )
    return list(dict.fromkeys((ONE_RANK, *chosen)))


class _Session:
    """The batch, the ranks and, after the first layout, the reference."""

    def __init__(
        self,
        settings: Settings,
        spec: ModelSpec,
        layouts: Sequence[Layout],
        thresholds: Thresholds,
        scratch: Path,
        pool: RankPool,
        setup: Setup | None,
    ) -> None:
        self._settings, self._spec, self._scratch = settings, spec, scratch
        self._pool, self._setup = pool, setup
        limit = int(spec.settings["max_sequence_length"])
        self._batch = make_batch(
            spec.vocab_size,
            limit,
            layouts,
            settings.seed,
            with_targets=spec.scalar_head is not None,
            without=spec.full_config.get("pad_token_id"),
            alone=settings.routing.balance > 0,  # this loss is one of a micro-batch
        )
        self._thresholds = thresholds
        self._reference: Reference | None = None
        pool.start(max(layout.world for layout in layouts))

    def measure(self, layout: Layout) -> Comparison:
        """Run a layout; the first must be one rank."""
        began, settings = time.monotonic(), self._settings
        if self._reference is None:
            hugging_face = run_huggingface(
                self._spec, settings.dtype, self._batch, settings.routing
            )
            run, directory = self._run(layout, None)
            modules = names.modules(self._spec.num_layers)
            self._reference = make_reference(run, hugging_face, modules)
        else:
            run, directory = self._run(layout, self._setup)
        row = compare(run, self._reference, self._thresholds, is_reference=layout == ONE_RANK)
        shutil.rmtree(directory)
        row.seconds = time.monotonic() - began
        return row

    def _run(self, layout: Layout, setup: Setup | None) -> tuple[LayoutRun, Path]:
        directory = self._scratch / layout.name
        directory.mkdir()
        request = Request(
            model=self._settings.model,
            layout=layout,
            dtype=self._settings.dtype,
            batch=self._batch,
            steps=self._settings.steps,
            routing=self._settings.routing,
            optimizer=OPTIMIZER,
            directory=directory,
            setup=setup,
        )
        runs = self._pool.run(layout.world, run_rank, request)
        return LayoutRun(self._spec, request, runs), directory
