"""Adapters under many layouts against plain torch in fp64, and of other families against one rank.

Tolerances, from what was seen on CPU in fp32: see tests/engine/test_parity.py, which has the same.
"""

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from megarlhf.models.lora import nf4, scales
from megarlhf.models.lora.merging import merge
from tests.engine.jobs import make_sequences
from tests.engine.layouts import LAYOUTS
from tests.engine.test_parity import gather
from tests.lora import jobs, reference
from tests.models.tiny import read_tensors, write_llama
from tests.models.zoo import write_model

LENGTHS = (17, 5, 30, 9, 9, 23, 12, 40)
STEPS = 3
CHOSEN = ("tp1", "tp2", "dp2", "pp2.vpp2", "tp2.pp2.sp", "cp2.tp2.sp")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model, adapters of all its linears in files, and what plain torch makes of them."""
    directory = tmp_path_factory.mktemp("lora")
    model = write_llama(directory / "model")
    tensors = jobs.write_adapters(directory / "adapter", model)
    sequences = make_sequences(101, LENGTHS)
    expected = reference.train(reference.adapted_model(model, tensors, 7 / 3), sequences, STEPS)
    return model, directory / "adapter", sequences, expected


def assert_same(outcome, expected, parallel):
    metrics, logprobs = expected
    found, after = zip(*outcome, strict=True)
    for ours, theirs in zip(found[0], metrics, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-6), name
    for ours, theirs in zip(gather(after, parallel.get("context", 1)), logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=4e-5)


@pytest.mark.parametrize("layout", CHOSEN)
def test_a_layout_trains_the_adapters_as_plain_torch_does(ranks, llama, layout):
    model, start, sequences, expected = llama
    world, parallel = LAYOUTS[layout]
    settings = {"recompute": "full"} if layout == "tp2.pp2.sp" else {}
    outcome = ranks.run(world, jobs.train, model, parallel, start, sequences, STEPS, settings)
    assert_same(outcome, expected, parallel)


def test_what_is_written_is_what_was_read(ranks, llama, tmp_path):
    model, start, *_ = llama
    world, parallel = LAYOUTS["tp2.pp2.sp"]
    ranks.run(world, jobs.write_back, model, parallel, start, tmp_path / "again")
    found, expected = read_tensors(tmp_path / "again"), read_tensors(start)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_goes_on_from_its_adapters_under_another_layout(ranks, llama, tmp_path):
    model, start, sequences, _ = llama
    world, parallel = LAYOUTS["tp2.pp2.sp"]
    (tmp_path / "step").mkdir()
    arguments = start, sequences, tmp_path / "step", {}
    expected = ranks.run(world, jobs.save_then_train, model, parallel, *arguments)[0]
    written = FileSystemReader(tmp_path / "step").read_metadata().state_dict_metadata
    assert all("_lora." in key or key.startswith("random") for key in written)  # not the base
    same = ranks.run(world, jobs.load_then_train, model, parallel, *arguments)[0]
    assert same == expected
    other = ranks.run(1, jobs.load_then_train, model, {}, *arguments)[0]
    for ours, theirs in zip(other, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-6)


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        ("qwen2-moe", [(2, {"expert": 2}), (4, {"tensor": 2, "sequence": True, "expert": 2})]),
        ("deepseek-v2", [(2, {"tensor": 2, "sequence": True})]),
    ],
)
def test_families_and_their_experts(ranks, tmp_path, family, layouts):
    """What adapters add is what merged weights are; layouts agree; the reference stays."""
    model = write_model(family, tmp_path / "model")
    jobs.write_adapters(tmp_path / "adapter", model)
    merge(model, tmp_path / "adapter", tmp_path / "merged")
    sequences = make_sequences(101, LENGTHS)
    merged = gather(ranks.run(1, jobs.merged_logprobs, tmp_path / "merged", sequences))
    arguments = tmp_path / "adapter", sequences, 2
    runs = [(1, {}, {}), *((world, parallel, {}) for world, parallel in layouts)]
    runs.append((1, {}, {"experts": "grouped"}))
    results = []
    for world, parallel, settings in runs:
        outcome = ranks.run(world, jobs.train_and_compare, model, parallel, *arguments, settings)
        metrics, *logprobs = zip(*outcome, strict=True)
        before, reference_after = (gather(parts) for parts in logprobs)
        for ours, theirs in zip(before, merged, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        for ours, theirs in zip(reference_after, before, strict=True):
            assert ours == pytest.approx(theirs, abs=5e-6)  # other memory, other rounding: 1e-6
        results.append(metrics[0])
    for found in results[1:]:
        for ours, theirs in zip(found, results[0], strict=True):
            assert ours == pytest.approx(theirs, rel=5e-6)


def test_dropout_is_of_training_only_and_the_same_when_computed_again(ranks, llama):
    model, start, sequences, _ = llama
    outcomes = [
        ranks.run(1, jobs.train, model, {}, start, sequences, 1, settings)[0]
        for settings in (
            {},
            {"dropout": 0.5},
            {"dropout": 0.5, "recompute": "full"},
        )
    ]
    (without, _), (dropped, after), (again, after_again) = outcomes
    assert abs(dropped[0]["loss"] - without[0]["loss"]) > 1e-3
    assert (dropped, after) == (again, after_again)


@pytest.fixture
def in_blocks(tmp_path):
    """A model whose rows are whole blocks, and adapters for it."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 2}
    model = write_llama(tmp_path / "model", **sizes)
    return model, tmp_path / "adapter", jobs.write_adapters(tmp_path / "adapter", model)


@pytest.mark.parametrize(
    ("layout", "double"), [("tp1", False), ("tp2.sp", False), ("tp2.sp", True)]
)
def test_a_base_in_4_bits(ranks, in_blocks, layout, double):
    """As plain torch on the weights that the 4 bits stand for."""
    model, start, tensors = in_blocks
    sequences = make_sequences(101, LENGTHS)
    plain = reference.adapted_model(model, tensors, 7 / 3)
    for module in plain.modules():
        if isinstance(module, reference.Adapted):
            weight = module.linear.weight
            packed, largest = nf4.quantize(weight)
            if double:
                largest = scales.unpack(*scales.pack(largest))
            weight.copy_(nf4.dequantize(packed, largest, torch.float32))
    expected = reference.train(plain, sequences, STEPS)
    world, parallel = LAYOUTS[layout]
    outcome = ranks.run(world, jobs.packed, model, parallel, start, sequences, STEPS, double)
    assert_same([found[:2] for found in outcome], expected, parallel)
    elements = sum(
        tensor.numel() for name, tensor in read_tensors(model).items() if "_proj" in name
    )
    blocks = elements // world // nf4.BLOCK
    in_bytes, in_floats = (blocks, 2 * blocks // scales.ROWS) if double else (0, blocks)
    packed = elements // world // 2
    assert outcome[0][2] == {torch.uint8: packed + in_bytes, torch.float32: 4 * in_floats}


def test_a_run_in_4_bits_goes_on_as_it_would_have(ranks, in_blocks, tmp_path):
    """Bit for bit, with dropout."""
    model, start, _ = in_blocks
    world, parallel = LAYOUTS["tp2"]
    (tmp_path / "step").mkdir()
    settings = {"base": ("nf4", True), "dropout": 0.3}
    arguments = start, make_sequences(101, LENGTHS), tmp_path / "step", settings
    expected = ranks.run(world, jobs.save_then_train, model, parallel, *arguments)
    assert ranks.run(world, jobs.load_then_train, model, parallel, *arguments) == expected
