"""A teacher beside the student, on the same ranks in a layout of its own: what it says of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from megarlhf.config.schema import DistillationLossConfig
from megarlhf.data.records import Batch, MicroBatch
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.engine.exchange import Side, exchange
from megarlhf.engine.model_engine import ModelEngine
from megarlhf.engine.shares import Shares
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.divergence import vocab_parallel_divergence, vocab_parallel_log_softmax
from megarlhf.parallel.logprobs import vocab_parallel_logprobs
from megarlhf.parallel.second_layout import SecondLayout
from megarlhf.parallel.top_k_divergence import top_k_divergence
from megarlhf.parallel.topology import Topology


@dataclass(frozen=True)
class Lesson:
    """What the teacher says of one batch, where this rank's part of the student needs it.

    Called by the engine with the student's logits; see `TokenLoss.from_logits`.

    Attributes:
        config: The divergence, its temperature and top-k.
        vocab_size: Of both models.
        logprobs: Of each sequence on this rank, by its index in the batch: [tokens, own columns], or
            [tokens, k] of the teacher's best tokens; 0 at padding.
        ids: Which tokens those are, [tokens, k]; None without top-k.
    """

    config: DistillationLossConfig
    vocab_size: int
    logprobs: dict[int, torch.Tensor]
    ids: dict[int, torch.Tensor] | None

    def __call__(
        self, logits: torch.Tensor, batch: MicroBatch, group: dist.ProcessGroup
    ) -> torch.Tensor:
        """The divergence at each token [T]."""
        config = self.config
        common: dict[str, Any] = {
            "kind": config.divergence,
            "weight": config.js_weight,
            "group": group,
            "temperature": config.temperature,
        }
        teacher = _packed(self.logprobs, batch)
        if self.ids is None:
            return vocab_parallel_divergence(logits, teacher, vocab_size=self.vocab_size, **common)
        logprobs, _ = vocab_parallel_logprobs(
            logits,
            batch.targets,
            vocab_size=self.vocab_size,
            group=group,
            temperature=config.temperature,
        )
        ids = _packed(self.ids, batch)
        return top_k_divergence(logits, logprobs, batch.targets, teacher, ids, **common)


def _packed(rows: dict[int, torch.Tensor], batch: MicroBatch) -> torch.Tensor:
    """Rows of sequences as those of the packed micro-batch."""
    return torch.cat([rows[index] for index in batch.order])


class Student(Protocol):
    """What a teacher has to know of the model that learns: a `ModelEngine`, or less."""

    spec: ModelSpec
    topology: Topology
    passes: Shares


class Teacher:
    """The frozen teacher.

    Args:
        engine: The teacher.
        layout: Its layout's groups.
        student: The model that learns.
        config: What of the teacher's distributions is wanted.
    """

    def __init__(
        self,
        engine: ModelEngine,
        layout: SecondLayout,
        student: Student,
        config: DistillationLossConfig,
    ) -> None:
        self._engine, self._layout, self._student, self._config = engine, layout, student, config

    def lesson(self, batch: Batch) -> Lesson:
        """Run the teacher on a batch, the same on every rank. Collective.

        The distributions of this rank's share of the batch are kept in fp32 until the student has
        taken its step: tokens times columns (or times k) numbers.
        """
        sequences, groups = self._student.passes.filled(batch.sequences, batch.groups)
        with self._layout.active():
            rows, ids = self._says(sequences)
        lengths = [len(sequence.token_ids) for sequence in sequences]
        source = _side(self._engine, sequences, None, self._columns_sent())
        target = _side(self._student, sequences, groups, self._columns_wanted())
        ends = {"rank": self._engine.rank, "device": self._engine.device}
        logprobs = exchange(rows, source, target, lengths, dtype=torch.float32, **ends)
        best = None
        if self._config.top_k is not None:
            best = exchange(ids, source, target, lengths, dtype=torch.int64, **ends)
        return Lesson(self._config, self._student.spec.vocab_size, logprobs, best)

    @torch.no_grad()
    def _says(
        self, sequences: Sequence[TokenSequence]
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """Of each sequence that this rank has at its last stage: rows of log-probabilities, and ids."""
        engine = self._engine
        rows: dict[int, torch.Tensor] = {}
        ids: dict[int, torch.Tensor] = {}

        def read(output: torch.Tensor, batch: MicroBatch, **_: Any) -> None:
            logprobs = vocab_parallel_log_softmax(
                output.view(-1, output.shape[-1]),
                vocab_size=self._student.spec.vocab_size,
                group=engine.groups.tp,
                temperature=self._config.temperature,
            ).float()
            if self._config.top_k is not None:
                logprobs, best = _top_k(logprobs, self._config.top_k, engine)
                ids.update(zip(batch.order, best.split(batch.lengths), strict=True))
            rows.update(zip(batch.order, logprobs.split(batch.lengths), strict=True))

        engine.run_forward(sequences, read)
        return rows, ids

    def _columns_sent(self) -> list[tuple[int, int]]:
        """What each of the teacher's tensor ranks has; of the best tokens the first one sends all."""
        if self._config.top_k is None:
            return self._columns_of(self._engine)
        return [(0, self._config.top_k), *[(0, 0)] * (self._engine.topology.tp - 1)]

    def _columns_wanted(self) -> list[tuple[int, int]]:
        """What each of the student's tensor ranks needs; of the best tokens all."""
        if self._config.top_k is None:
            return self._columns_of(self._student)
        return [(0, self._config.top_k)] * self._student.topology.tp

    def _columns_of(self, engine: Student) -> list[tuple[int, int]]:
        """The part of the student's vocabulary that each tensor rank of a model has."""
        vocabulary, tp = self._student.spec.vocab_size, engine.topology.tp
        width = -(-engine.spec.vocab_size // tp)
        return [(min(vocabulary, r * width), min(vocabulary, (r + 1) * width)) for r in range(tp)]


def _side(
    engine: Student,
    sequences: Sequence[TokenSequence],
    groups: Sequence[tuple[int, ...]] | None,
    columns: Sequence[tuple[int, int]],
) -> Side:
    shares = engine.passes.shares(*engine.passes.filled(sequences, groups))
    given = range(len(sequences))
    return Side(
        engine.topology,
        [frozenset(i for packed in share for i in packed if i in given) for share in shares],
        engine.passes.pad_to_multiple,
        columns,
    )


def _top_k(
    logprobs: torch.Tensor, k: int, engine: ModelEngine
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k of all ranks' columns and their ids, [T, k] each, the same on every tensor rank."""
    group = engine.groups.tp
    size = group.size()
    width = -(-engine.spec.vocab_size // size)
    missing = max(0, k - logprobs.shape[1])
    values, places = logprobs.topk(k - missing, dim=1)
    values = torch.nn.functional.pad(values, (0, missing), value=float("-inf"))
    places = torch.nn.functional.pad(places, (0, missing)) + group.rank() * width
    if size == 1:
        return values, places
    parts = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(parts, values.contiguous(), group=group)
    of_parts = [torch.empty_like(places) for _ in range(size)]
    dist.all_gather(of_parts, places.contiguous(), group=group)
    best, chosen = torch.cat(parts, 1).topk(k, dim=1)
    return best, torch.cat(of_parts, 1).gather(1, chosen)
