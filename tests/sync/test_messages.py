"""Messages over gloo, between threads, in transfers so small that every kind of cut occurs."""

from dataclasses import asdict
from threading import Thread

import pytest
import torch

from megarlhf.parallel.stores import serve_store
from megarlhf.parallel.topology import Topology
from megarlhf.sync.engine_layout import EngineTopology, engine_parameters
from megarlhf.sync.landing import Landing
from megarlhf.sync.link import Link
from megarlhf.sync.messages import MessageInlet, MessageOutlet
from megarlhf.sync.sender import Sender
from megarlhf.sync.transfers import in_one_piece, numel, transfers_of
from tests.models.tiny import stand_ins
from tests.sync.jobs import engine_model
from tests.sync.shapes import spec_of
from tests.sync.test_stream import info_of

CPU = torch.device("cpu")
TRANSFER = 2_000  # bytes


def in_threads(*jobs):
    threads = [Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_land_where_they_belong_update_after_update(tmp_path, dtype):
    spec = spec_of("qwen3-moe", tmp_path)
    topology, engine = Topology(world=2, tp=2), EngineTopology(2)
    store = serve_store("127.0.0.1", timeout_s=60)
    info = info_of(
        model_path=str(tmp_path),
        trainer=asdict(topology),
        engine=asdict(engine),
        port=store.port,
        dtype=dtype,
        timeout_s=60,
    )
    plan, wire = info.plan(spec), info.wire_dtype
    chunks = [stand_ins(spec, topology, rank) for rank in range(2)]
    senders = [Sender(spec, chunks[rank], rank) for rank in range(2)]
    landings = [
        Landing(engine_model(layout, wire), layout)
        for layout in (engine_parameters(spec, engine, worker) for worker in range(2))
    ]
    ends = {}

    def join(rank):
        link = Link(info, rank, CPU)
        ends[rank] = (
            MessageOutlet(link, wire, TRANSFER)
            if rank < 2
            else MessageInlet(link, landings[rank - 2], wire, CPU, plan, (0, rank - 2), TRANSFER)
        )

    in_threads(*(lambda rank=rank: join(rank) for rank in range(4)))
    errors = []

    def send(rank):
        ends[rank].begin(plan)
        for bucket in plan:
            for (_, worker), messages in bucket.messages.items():
                if rank in messages:
                    ends[rank].send(bucket, worker, messages[rank], senders[rank].read)
        ends[rank].flush()

    def receive(worker):
        inlet = ends[2 + worker]
        inlet.begin()
        for bucket in plan:
            messages = bucket.messages[0, worker]
            values = inlet.receive(bucket, messages)
            for sender, moves in messages.items():
                for move in moves:
                    got = values[move.engine_parameter][move.target.slices]
                    expected = senders[sender].read(move).to(wire).view(got.shape)
                    if not torch.equal(got, expected):
                        errors.append(move)
            inlet.done(bucket)

    for update in range(2):
        for rank in range(2):
            for _, values in chunks[rank][0].named_parameters():
                values.normal_(generator=torch.Generator().manual_seed(100 * update + rank))
        in_threads(
            *(lambda r=r: send(r) for r in range(2)), *(lambda w=w: receive(w) for w in (0, 1))
        )
        assert errors == []

    moves = [m for b in plan for parts in b.messages.values() for ms in parts.values() for m in ms]
    most = TRANSFER // wire.itemsize
    cut = transfers_of(moves, most)
    assert sum(map(numel, cut)) == sum(move.source.numel for move in moves)
    assert max(map(numel, cut)) <= most
    assert any(len(transfer) > 1 for transfer in cut)
    assert any(len(t) == 1 and t[0].last - t[0].first < t[0].move.source.shape[0] for t in cut)
    direct = [
        in_one_piece([r.of(senders[rank].read(r.move)) for r in transfer], wire, CPU) is not None
        for rank in range(2)
        for transfer in cut
        if all(r.move.parameter in dict(chunks[rank][0].named_parameters()) for r in transfer)
    ]
    assert (True in direct) == (dtype == "float32")
    assert False in direct
