"""Every layout against Hugging Face's model in fp64, trained with torch's AdamW.

Tolerances, from what was seen on CPU in fp32: log-probabilities within 3e-6, after five steps 1e-5;
means over the batch within 2e-7 relative, the gradient's norm within 4e-7. A lost gradient or a
wrong divisor shows in the first digits.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.engine import jobs
from tests.engine.layouts import LAYOUTS
from tests.engine.reference import hugging_face

LENGTHS = (17, 5, 30, 9, 9, 23, 12, 40)
STEPS = 5


def assert_close(metrics, expected):
    assert len(metrics) == len(expected)
    for step, (ours, theirs) in enumerate(zip(metrics, expected, strict=True)):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-6), (step, name)


def gather(parts, replicas=1):
    """Every sequence's values, which as many ranks returned as are context-parallel to each other."""
    found, times = {}, Counter()
    for part in parts:
        assert all(found.get(index, values) == values for index, values in part.items())
        found |= part
        times.update(part.keys())
    assert set(times.values()) == {replicas}
    return [found[index] for index in range(len(found))]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_computes_what_hugging_face_does(ranks, llamas, layout, tied):
    """With weights and a temperature: all that enters the sums and their one division."""
    world, parallel = LAYOUTS[layout]
    sequences = jobs.make_sequences(101, LENGTHS, weighted=True)
    outcome = ranks.run(
        world, jobs.logprobs_and_train, llamas[tied], parallel, sequences, STEPS, {}, 0.8
    )
    before, metrics, after = zip(*outcome, strict=True)
    expected = hugging_face(llamas[tied], LENGTHS, STEPS, weighted=True, temperature=0.8)
    for parts, theirs, tolerance in ((before, expected[0], 1e-5), (after, expected[2], 4e-5)):
        ours = gather(parts, parallel.get("context", 1))
        assert len(ours) == len(theirs)
        for index, values in enumerate(ours):
            assert values == pytest.approx(theirs[index], abs=tolerance)
    assert all(on_rank == metrics[0] for on_rank in metrics)
    assert all(step["lr"] == jobs.LR for step in metrics[0])
    assert_close(metrics[0], expected[1])


@pytest.mark.parametrize("layout", ["tp1", "dp2"])
def test_without_weights_every_trained_token_counts_the_same(ranks, llamas, layout):
    world, parallel = LAYOUTS[layout]
    sequences = jobs.make_sequences(101, LENGTHS)
    outcome = ranks.run(world, jobs.logprobs_and_train, llamas[False], parallel, sequences, 2, {})
    metrics = outcome[0][1]
    assert_close(metrics, hugging_face(llamas[False], LENGTHS, 2)[1])
    assert all(step["loss"] == pytest.approx(step["nll"], rel=1e-12) for step in metrics)


def test_the_divisor_is_the_whole_batchs_and_not_a_ranks(ranks, llamas):
    """A long sequence beside one of two tokens: a mean of the two ranks' means would be far off."""
    lengths = (60, 2)
    sequences = jobs.make_sequences(101, lengths, weighted=True)
    sequences[1].loss_mask = [0.0, 1.0]
    sequences[1].fields["loss_weight"] = [0.0, 0.01]
    outcome = ranks.run(2, jobs.logprobs_and_train, llamas[False], {}, sequences, 1, {})
    metrics = outcome[0][1][0]
    logprobs = gather([outcome[0][0], outcome[1][0]])
    loss = nll = weights = tokens = 0.0
    for sequence, values in zip(sequences, logprobs, strict=True):
        rows = zip(values, sequence.loss_mask, sequence.fields["loss_weight"], strict=True)
        for logprob, mask, weight in rows:
            loss, weights = loss - logprob * mask * weight, weights + mask * weight
            nll, tokens = nll - logprob * mask, tokens + mask
    assert metrics["loss"] == pytest.approx(loss / weights, rel=1e-6)
    assert metrics["nll"] == pytest.approx(nll / tokens, rel=1e-6)


@pytest.mark.parametrize("tokens", [8, 50, 1000])
def test_the_size_of_micro_batches_changes_nothing(ranks, llamas, tokens):
    """From one sequence each (all but one are longer than 8 tokens) to all in one."""
    sequences = jobs.make_sequences(101, LENGTHS, weighted=True)
    outcome = ranks.run(
        2,
        jobs.logprobs_and_train,
        llamas[False],
        {"pipeline": 2},
        sequences,
        3,
        {"micro_batch_tokens": tokens},
    )
    assert_close(outcome[0][1], hugging_face(llamas[False], LENGTHS, 3, weighted=True)[1])


def test_recompute_changes_no_bit(ranks, llamas):
    world, parallel = LAYOUTS["tp2.sp"]
    sequences = jobs.make_sequences(101, LENGTHS)
    kept, selective, full = (
        ranks.run(
            world,
            jobs.logprobs_and_train,
            llamas[False],
            parallel,
            sequences,
            2,
            {"recompute": recompute},
        )
        for recompute in ("none", "selective", "full")
    )
    assert selective == kept
    assert full == kept


@pytest.mark.parametrize("layout", ["tp1", "tp2.sp", "dp2"])
def test_weight_decay_and_clipping_are_the_configurations(ranks, llamas, layout):
    """Decay of the matrices but not of the norms; no clipping of gradients with norms of 2 to 4."""
    world, parallel = LAYOUTS[layout]
    optimizer = replace(jobs.OPTIMIZER, weight_decay=10.0, beta2=0.99, clip_grad=0.0)
    sequences = jobs.make_sequences(101, LENGTHS)
    outcome = ranks.run(
        world,
        jobs.logprobs_and_train,
        llamas[False],
        parallel,
        sequences,
        3,
        {"optimizer": optimizer},
    )
    expected = hugging_face(llamas[False], LENGTHS, 3, settings=optimizer)[1]
    assert expected[0]["grad_norm"] > 2
    assert_close(outcome[0][1], expected)


@pytest.mark.parametrize("layout", ["tp1", "tp2.pp2.sp"])
def test_bfloat16_trains(ranks, llamas, layout):
    world, parallel = LAYOUTS[layout]
    sequences = jobs.make_sequences(101, LENGTHS)
    outcome = ranks.run(
        world,
        jobs.logprobs_and_train,
        llamas[False],
        parallel,
        sequences,
        12,
        {"dtype": "bfloat16"},
    )
    losses = [step["loss"] for step in outcome[0][1]]
    exact = [step["loss"] for step in hugging_face(llamas[False], LENGTHS, 12)[1]]
    assert losses[-1] < losses[0] - 1
    assert losses == pytest.approx(exact, rel=1e-2)  # seen: 4e-3


def test_a_batch_without_trained_tokens_is_refused(ranks, llamas):
    sequences = jobs.make_sequences(101, (5,))
    sequences[0].loss_mask = [0.0] * 5
    (refusal,) = ranks.run(1, jobs.refusal_to_train, llamas[False], sequences)
    assert "every loss_mask is zero" in refusal


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gpus_train_as_hugging_face_does(ranks, llamas, layout, dtype):
    """As many layouts as there are devices for. bf16 rounds to 3 digits, with fp32 main copies."""
    world, parallel = LAYOUTS[layout]
    if torch.cuda.device_count() < world:
        pytest.skip(f"fewer than {world} CUDA devices")
    sequences = jobs.make_sequences(101, LENGTHS, weighted=True)
    settings = {"dtype": dtype}
    outcome = ranks.run(
        world, jobs.logprobs_and_train, llamas[False], parallel, sequences, 2, settings, 0.8
    )
    expected = hugging_face(llamas[False], LENGTHS, 2, weighted=True, temperature=0.8)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    for ours, theirs in zip(outcome[0][1], expected[1], strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=tolerance), name
