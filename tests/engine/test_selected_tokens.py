"""Losses that read trained tokens only: others' logits are not computed, and nothing else changes."""

import pytest
import torch

from megarlhf.algo.supervised_loss import NegativeLogLikelihood
from megarlhf.data.records import Batch
from megarlhf.parallel.context import zigzag_indices, zigzag_positions
from tests.engine import jobs
from tests.engine.layouts import LAYOUTS
from tests.models.tiny import write_llama


class OfAllTokens(NegativeLogLikelihood):
    reads_trained_only = False


def steps_and_rows(rank, world, path, parallel, sequences, loss):
    """Metrics of three steps and an evaluation, and the most rows of logits that were computed."""
    engine, rows = jobs.build(rank, world, path, parallel), [0]
    layer = getattr(engine.chunks[-1], "output_layer", None)
    if layer is not None:
        layer.register_forward_hook(lambda _, __, out: rows.append(len(out[0])))
    metrics = jobs.train(engine, sequences, 3, loss)
    batch = Batch(sequences, [(index,) for index in range(len(sequences))])
    return [*metrics, engine.evaluate([(batch, loss)])], max(rows)


@pytest.mark.parametrize("layout", ["tp2.sp", "cp2.tp2.sp", "pp2.vpp2"])
def test_steps_are_the_same(ranks, tmp_path, layout):
    path = write_llama(tmp_path)
    sequences = jobs.make_sequences(101, [17, 5, 30, 9])
    for sequence in sequences[:2]:  # under context parallelism a rank has none of them
        sequence.loss_mask = [0.0] * (len(sequence.token_ids) - 1) + [1.0]
    world, parallel = LAYOUTS[layout]
    some, every = (
        ranks.run(world, steps_and_rows, path, parallel, sequences, loss)
        for loss in (NegativeLogLikelihood(), OfAllTokens())
    )
    for (ours, few), (theirs, rows) in zip(some, every, strict=True):
        assert few < rows or not rows  # stages before the last have no logits
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, rel=1e-6)  # other shapes, other rounding: 2e-7
    assert any(rows for _, rows in every)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_positions_in_a_zigzag(size):
    lengths = (12, 24, 12)
    mask = torch.rand(48, generator=torch.Generator().manual_seed(0)) < 0.4
    positions = mask.nonzero().flatten().tolist()
    for rank in range(size):
        expected = mask[zigzag_indices(lengths, rank, size)].nonzero().flatten().tolist()
        assert list(zigzag_positions(positions, lengths, rank, size)) == expected
