"""The trainer's end where only adapters are trained: an engine is sent the base once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from megarlhf.models.lora.quantized import WithPacked
from megarlhf.sync.fingerprints import Fingerprints
from megarlhf.sync.plan import Worker
from megarlhf.sync.sender import Sender, Sent

if TYPE_CHECKING:
    from megarlhf.models.lora.adapter import AdapterSpec
    from megarlhf.sync.link import StreamInfo


class AdapterSender:
    """In place of a `Sender`; the engine's end is `EngineAdapters`.

    Each engine has two links, one for the base and one for the adapters.

    Args:
        spec: The adapters.
        chunks: This rank's model chunks (not wrapped).
        rank: This trainer rank.
    """

    def __init__(self, spec: "AdapterSpec", chunks: Sequence[nn.Module], rank: int) -> None:
        self._base = Sender(spec.base, [WithPacked(chunk) for chunk in chunks], rank)
        self._adapters = Sender(spec, chunks, rank)
        self._have_base: set[int] = set()

    def connect(
        self, info: "StreamInfo", device: torch.device, store: dist.Store | None = None
    ) -> None:
        """See `Sender.connect`; an engine that is new is sent the base with its first update."""
        self._have_base.discard(info.number)
        self._base.connect(info, device, store)
        self._adapters.connect(info.of_adapters(), device, store)

    def send(self, engines: Sequence[int]) -> dict[int, Sent]:
        """See `Sender.send`."""
        sent = self._base.send([n for n in engines if n not in self._have_base])
        self._have_base |= {number for number, one in sent.items() if one.error is None}
        whole = [number for number in engines if number in self._have_base]
        for number, one in self._adapters.send(whole).items():
            before = sent[number].nbytes if number in sent else 0
            sent[number] = Sent(before + one.nbytes, one.error)
        return sent

    def fingerprints(self, engines: Sequence[int]) -> dict[Worker, Fingerprints]:
        """Of the base and of the adapters: see `Sender.fingerprints`."""
        found = self._base.fingerprints(engines)
        for worker, prints in self._adapters.fingerprints(engines).items():
            found.setdefault(worker, {}).update(prints)
        return found
