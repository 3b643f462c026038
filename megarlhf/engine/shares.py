"""Which rank of a layout runs which sequences of a batch, in which micro-batches."""

import math
from collections.abc import Sequence

from megarlhf.config.schema import ModelConfig, RLConfig
from megarlhf.data import beginnings, dealing, packing
from megarlhf.data.records import Sequence as TokenSequence
from megarlhf.models.spec import ModelSpec
from megarlhf.parallel.topology import Topology


def shares_prompts(config: RLConfig, model: ModelConfig, topology: Topology) -> bool:
    """Whether a model of a run is to run a prompt once for all of its samples in a pack.

    Not where a ring cuts every sequence by itself, or routers' losses count a prompt every time.
    """
    has_router_losses = bool(model.aux_loss_coef or model.z_loss_coef)
    return config.rollout.share_prompts and topology.cp == 1 and not has_router_losses


def packs_last(spec: ModelSpec, share: bool) -> bool:
    """Whether a sequence's last token is run: a language model that shares predicts nothing from it."""
    return not share or spec.scalar_head is not None


class Shares:
    """How batches are dealt; needs no model.

    Args:
        topology: The layout.
        micro_batch_tokens: Most tokens a packed forward pass holds.
        share: Whether beginnings that sequences have in common, such as prompts, are run once.
        with_last: Whether the last token of each sequence is run: see `packs_last`.
    """

    def __init__(
        self,
        topology: Topology,
        micro_batch_tokens: int,
        *,
        share: bool = False,
        with_last: bool = True,
    ) -> None:
        self.topology, self.micro_batch_tokens = topology, micro_batch_tokens
        self.share, self.with_last = share, with_last

    @property
    def pad_to_multiple(self) -> int:
        """Sequences are padded to this: tp cuts a rank's tokens, context parallelism a sequence."""
        multiple = self.topology.tp if self.topology.sequence_parallel else 1
        return multiple * (2 * self.topology.cp if self.topology.cp > 1 else 1)

    @property
    def multiple_of(self) -> int:
        """Of this the number of a rank's micro-batches is a multiple."""
        return self.topology.pp if self.topology.vpp > 1 else 1

    def filled(
        self,
        sequences: Sequence[TokenSequence],
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> tuple[list[TokenSequence], list[tuple[int, ...]]]:
        """As many groups as can always be dealt; see `dealing.filled`."""
        return dealing.filled(sequences, groups, self.topology.dp * self.multiple_of)

    def shares(
        self,
        sequences: Sequence[TokenSequence],
        groups: Sequence[tuple[int, ...]] | None = None,
    ) -> list[list[list[int]]]:
        """Which sequences are in which micro-batch of which data-parallel rank."""
        if self.share and groups is None:
            return self._shares_of_groups(sequences)
        lengths = [len(sequence.token_ids) for sequence in sequences]
        return dealing.partition(
            [packing.padded_length(length, self.pad_to_multiple) for length in lengths],
            dp_size=self.topology.dp,
            max_tokens=self.micro_batch_tokens,
            multiple_of=self.multiple_of,
            groups=groups,
        )

    def _shares_of_groups(self, sequences: Sequence[TokenSequence]) -> list[list[list[int]]]:
        """Sequences of one beginning are together, as far as that can be dealt."""
        dealt = {"dp_size": self.topology.dp, "multiple_of": self.multiple_of}
        groups = beginnings.together(
            sequences,
            max_tokens=self.micro_batch_tokens,
            multiple=math.prod(dealt.values()),
            pad_to_multiple=self.pad_to_multiple,
            with_last=self.with_last,
        )
        shares = dealing.partition(
            [group.tokens for group in groups], max_tokens=self.micro_batch_tokens, **dealt
        )
        return [
            [[index for number in pack for index in groups[number].members] for pack in rank]
            for rank in shares
        ]
