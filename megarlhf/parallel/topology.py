"""Which rank holds what: a pure description of a layout, before any process group exists.

Ranks are ordered as Megatron-Core orders them, fastest first: tensor, context, data, pipeline
(``tp-cp-ep-dp-pp``; expert ranks are taken from the context-by-data plane).
"""

from dataclasses import dataclass

from megarlhf.config.layout_checks import check_chunk_layers
from megarlhf.config.schema import ParallelConfig
from megarlhf.errors import UserError


@dataclass(frozen=True)
class Coordinates:
    """A rank's place in the grid."""

    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class Topology:
    """Sizes of every parallel dimension for one model over ``world`` ranks."""

    world: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    vpp: int = 1
    sequence_parallel: bool = False
    chunk_layers: tuple[int, ...] | None = None  # of each model chunk, first to last; None: even

    def __post_init__(self) -> None:
        if self.world % self.model_ranks:
            raise UserError(
                f"{self.world} ranks cannot hold a model laid out over {self.model_ranks} "
                f"(tensor {self.tp} x pipeline {self.pp} x context {self.cp})",
                where="model.parallel",
                fix=f"use a multiple of {self.model_ranks} ranks or a smaller layout",
            )

    @classmethod
    def of(cls, parallel: ParallelConfig, world: int) -> "Topology":
        """The topology of a configured layout on ``world`` ranks."""
        return cls(
            world=world,
            tp=parallel.tensor,
            pp=parallel.pipeline,
            cp=parallel.context,
            ep=parallel.expert,
            vpp=parallel.virtual_pipeline,
            sequence_parallel=parallel.sequence,
            chunk_layers=parallel.chunk_layers,
        )

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tp * self.pp * self.cp

    @property
    def dp(self) -> int:
        """Data-parallel replicas."""
        return self.world // self.model_ranks

    def coordinates(self, rank: int) -> Coordinates:
        """Where ``rank`` stands in the grid."""
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Coordinates(tp=tp, cp=cp, dp=dp, pp=pp)

    def expert_rank(self, rank: int) -> int:
        """Which share of a layer's experts ``rank`` holds, from 0 to ep - 1.

        Expert-parallel neighbours are taken from the context-by-data plane, next to tensor ranks.
        """
        return rank // self.tp % self.ep

    def layer_counts(self, num_layers: int) -> tuple[int, ...]:
        """How many layers each of the pp * vpp model chunks has, in the order of the layers.

        Where they do not divide, the chunks in the middle have one more: the first also has the
        embedding, the last the output layer.

        Raises:
            UserError: There are fewer layers than chunks, or ``chunk_layers`` does not fit.
        """
        chunks = self.pp * self.vpp
        if self.chunk_layers is not None:
            check_chunk_layers(self.chunk_layers, num_layers, chunks)
            return self.chunk_layers
        least, more = divmod(num_layers, chunks)
        if least == 0:
            raise UserError(
                f"{num_layers} layers cannot be cut into {self.pp} x {self.vpp} chunks",
                where="model.parallel.pipeline",
                fix=f"choose a pipeline size (times virtual_pipeline) of at most {num_layers}",
            )
        by_preference = [*range(1, chunks - 1), 0, chunks - 1]
        larger = by_preference[:more]
        return tuple(least + (chunk in larger) for chunk in range(chunks))

    def layers_of(self, num_layers: int, pp_rank: int) -> list[list[int]]:
        """Global layer numbers of each model chunk of a pipeline stage, in order.

        Chunk v of stage p follows chunk v of stage p-1; with one chunk a stage that is a plain cut.
        """
        counts = self.layer_counts(num_layers)
        mine = [chunk * self.pp + pp_rank for chunk in range(self.vpp)]
        starts = [sum(counts[:chunk]) for chunk in mine]
        return [
            list(range(start, start + counts[chunk]))
            for chunk, start in zip(mine, starts, strict=True)
        ]
