"""Names of layouts, and refusals before anything starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarlhf.config.schema import ParallelConfig
from megarlhf.data.dealing import partition
from megarlhf.errors import UserError
from megarlhf.parallel.topology import Topology
from megarlhf.parity.batch import MICRO_BATCH_TOKENS, make_batch
from megarlhf.parity.layouts import ONE_RANK, Layout, check, default_layouts, nearest, possible

MODEL = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
EXPERTS = {**MODEL, "num_experts": 4}


def test_a_name_is_read_in_any_order():
    layout = Layout.parse("cp2.pp4.sp.tp2.vpp3.dp5")
    assert layout == Layout(tp=2, pp=4, vpp=3, cp=2, dp=5, sp=True)
    assert layout.name == "tp2.sp.pp4.vpp3.cp2.dp5"
    assert layout.world == 80
    assert layout.parallel == ParallelConfig(2, 4, 2, 1, True, 3)
    assert layout.topology == Topology(80, tp=2, pp=4, cp=2, vpp=3, sequence_parallel=True)
    assert Layout.parse("tp1") == ONE_RANK == Layout.parse("dp1.pp1")
    assert ONE_RANK.name == "tp1"


SIZES = st.integers(1, 9)


@given(st.builds(Layout, SIZES, SIZES, SIZES, SIZES, st.just(1), SIZES, st.booleans()))
def test_a_layout_is_read_back_from_its_name(layout):
    assert Layout.parse(layout.name) == layout


@pytest.mark.parametrize(
    ("name", "dp"), [("ep2", 2), ("ep4.cp2", 2), ("ep2.cp2", 1), ("ep2.cp3", 2), ("ep2.dp4", 4)]
)
def test_expert_parallelism_brings_the_replicas_that_it_needs(name, dp):
    assert Layout.parse(name).dp == dp


@pytest.mark.parametrize("name", ["", "tp", "tp0", "tp2,pp2", "zp2", "tp2..pp2", "TP2", "tp2x"])
def test_a_misspelt_name_is_refused(name):
    with pytest.raises(UserError, match="is no component") as refusal:
        Layout.parse(name)
    assert "tpN ppN vppN" in refusal.value.fix or "tpN ppN cpN" in refusal.value.fix


def test_a_repeated_component_is_refused():
    with pytest.raises(UserError, match="tp is given twice"):
        Layout.parse("tp2.pp2.tp4")


@pytest.mark.parametrize(
    ("name", "why", "near"),
    [
        ("tp3", r"tp must divide the model's num_attention_heads \(4\), got 3", "tp2,"),
        ("tp8", r"tp must divide the model's num_attention_heads \(4\), got 8", "tp4,"),
        ("sp", "sp needs tp > 1", "tp2.sp"),
        ("pp5", r"pp must be at most the model's num_hidden_layers \(4\), got 5", "pp4,"),
        ("vpp2", "vpp needs pp > 1", "pp2.vpp2"),
        (
            "pp2.vpp3",
            "vpp must leave each of 2 stages' chunks one of the 4 layers, got 3",
            "pp2.vpp2",
        ),
        ("ep2", "the model has no experts, got 2", "dp2"),
        ("tp2.pp2.cp2.dp2", "needs 16 ranks, more than the 8 of --max-ranks", "tp2.pp2.cp2"),
    ],
)
def test_what_the_model_cannot_have_is_refused_with_the_nearest(name, why, near):
    with pytest.raises(UserError, match=why) as refusal:
        check(Layout.parse(name), MODEL)
    assert near in refusal.value.fix
    assert refusal.value.where.startswith("layout ")


def test_more_ranks_may_be_allowed():
    check(Layout.parse("tp2.pp2.cp2.dp2"), MODEL, max_ranks=16)


def test_experts_are_cut_evenly_and_need_sequence_parallelism_beside_tp():
    check(Layout.parse("ep2.pp2.tp2.sp"), EXPERTS)
    with pytest.raises(UserError, match="sp must be true") as refusal:
        check(Layout.parse("ep2.pp2.tp2"), EXPERTS)
    assert "tp2.sp.pp2.ep2.dp2" in refusal.value.fix
    with pytest.raises(UserError, match="must divide the model's 4 experts, got 3"):
        check(Layout.parse("ep3"), EXPERTS)


def test_the_nearest_are_possible_and_a_possible_layout_is_its_own_nearest():
    layout = Layout.parse("tp2.cp2")
    assert nearest(layout, MODEL)[0] == layout
    for near in nearest(Layout.parse("tp3.pp3.cp3"), MODEL):
        check(near, MODEL)


def test_the_default_layouts_are_many_and_possible():
    layouts = default_layouts(MODEL)
    names = [layout.name for layout in layouts]
    assert len(names) == len(set(names)) >= 24
    wanted = {"tp2", "tp2.sp", "pp2", "pp3", "pp2.vpp2", "cp2", "cp4", "dp2", "dp4"}
    wanted |= {"tp2.sp.pp2.cp2", "tp2.sp.pp2.vpp2.dp2", "tp2.cp2.dp2", "pp2.cp4", "cp2.dp2"}
    assert wanted <= set(names)
    for layout in layouts:
        check(layout, MODEL)
    assert [layout.world for layout in layouts] == sorted(layout.world for layout in layouts)
    assert {layout.world for layout in default_layouts(MODEL, max_ranks=2)} == {2}
    assert default_layouts(MODEL, max_ranks=1) == []


def test_the_default_layouts_follow_the_model():
    names = {layout.name for layout in default_layouts(EXPERTS)}
    assert {"ep2.dp2", "tp2.sp.pp2.ep2.dp2", "cp2.ep2"} <= names
    assert "tp2" not in names
    odd = {**MODEL, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}
    assert {"tp3.sp", "pp2", "pp3", "pp3.cp2"} <= {layout.name for layout in default_layouts(odd)}


@pytest.mark.parametrize("vocab", [2, 101])
def test_every_possible_layout_can_deal_the_batch(vocab):
    layouts = list(possible(MODEL))
    batch = make_batch(vocab, 128, layouts)
    assert batch.sequences == make_batch(vocab, 128, layouts).sequences
    assert batch.sequences != make_batch(vocab, 128, layouts, seed=1).sequences
    assert len(set(batch.lengths)) > 4
    for sequence in batch.sequences:
        assert set(sequence.token_ids) <= set(range(vocab))
        assert sequence.loss_mask[0] == 0.0
        assert sequence.loss_mask[-1] == 1.0
    for layout in layouts:
        multiple = layout.pp if layout.vpp > 1 else 1
        partition(
            batch.lengths, dp_size=layout.dp, max_tokens=MICRO_BATCH_TOKENS, multiple_of=multiple
        )
    assert len(partition(batch.lengths, dp_size=1, max_tokens=MICRO_BATCH_TOKENS)[0]) >= 4


def test_sequences_fit_the_models_positions():
    assert max(make_batch(101, 16, [ONE_RANK]).lengths) == 16


def test_a_sequence_can_have_a_micro_batch_for_itself():
    batch = make_batch(101, 128, [ONE_RANK], alone=True)
    shares = partition(batch.lengths, dp_size=2, max_tokens=batch.micro_batch_tokens)
    assert [len(micro_batch) for share in shares for micro_batch in share] == [1] * 8


def test_a_models_padding_is_not_in_the_batch():
    batch = make_batch(5, 128, [ONE_RANK], without=3)
    assert {token for s in batch.sequences for token in s.token_ids} == {0, 1, 2, 4}
