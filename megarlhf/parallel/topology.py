"""Which rank holds what: a pure description of a layout, before any process group exists.

Ranks are ordered as Megatron-Core orders them, fastest first: tensor, context, data, pipeline
(``tp-cp-ep-dp-pp``; expert ranks are taken from the context-by-data plane).
"""

from dataclasses import dataclass

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

    def layers_of(self, num_layers: int, pp_rank: int) -> list[list[int]]:
        """Global layer numbers of each model chunk of a pipeline stage, in order.

        Chunk v of stage p follows chunk v of stage p-1; with one chunk a stage that is a plain cut.
        """
        chunks = self.pp * self.vpp
        if num_layers % chunks:
            raise UserError(
                f"{num_layers} layers cannot be cut into {self.pp} x {self.vpp} equal chunks",
                where="model.parallel.pipeline",
                fix="choose a pipeline size (times virtual_pipeline) that divides the layers",
            )
        size = num_layers // chunks
        starts = [(chunk * self.pp + pp_rank) * size for chunk in range(self.vpp)]
        return [list(range(start, start + size)) for start in starts]
