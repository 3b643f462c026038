"""The trainer's end of the stream: each rank sends the pieces it holds, straight from its memory."""

from collections.abc import Sequence

import torch
from torch import nn

from megarlhf.models.spec import ModelSpec
from megarlhf.sync.link import Link, StreamInfo
from megarlhf.sync.plan import plan_stream


class Sender:
    """Replays the plan towards one or more engines.

    Args:
        spec: The model.
        chunks: This rank's model chunks (not wrapped).
        rank: This trainer rank.
        info: What both ends agreed on (the same for all engines but for the link's name).
    """

    def __init__(
        self, spec: ModelSpec, chunks: Sequence[nn.Module], rank: int, info: StreamInfo
    ) -> None:
        self._parameters = [dict(chunk.named_parameters()) for chunk in chunks]
        self._rank, self._info = rank, info
        self._plan = plan_stream(spec, info.trainer, info.bucket_elements)

    @torch.no_grad()
    def send(self, links: Sequence[Link]) -> int:
        """Send every piece this rank holds to every worker of every engine.

        Packing the next bucket overlaps the sending of the one before; two buckets exist at most.

        Returns:
            Bytes sent.
        """
        first_worker = self._info.trainer.world
        pending: list = []
        bytes_sent = 0
        for bucket in self._plan:
            parts = bucket.parts.get(self._rank)
            if parts is None:
                continue
            message = torch.cat(
                [
                    self._parameters[part.chunk][part.parameter][part.piece.local.slices]
                    .to(self._info.wire_dtype)
                    .reshape(-1)
                    for part in parts
                ]
            )
            for work, _ in pending:
                work.wait()
            pending = [
                (link.send(message, first_worker + worker), message)
                for link in links
                for worker in range(self._info.engine_ranks)
            ]
            bytes_sent += message.nbytes * len(pending)
        for work, _ in pending:
            work.wait()
        return bytes_sent
