"""Our description of a layout against Megatron's process groups and layer numbers."""

from dataclasses import replace
from itertools import product

import pytest

from megarlhf.config.schema import ParallelConfig
from megarlhf.errors import UserError
from megarlhf.parallel.topology import Topology
from tests.parallel import jobs


def test_coordinates_are_places_in_megatrons_groups(ranks):
    layouts = list(product((1, 2, 4), (1, 2), (1, 2, 3), (1, 2, 4)))  # tp, cp, dp, pp
    (found,) = ranks.run(1, jobs.megatron_groups, layouts)
    for (tp, cp, dp, pp), groups in zip(layouts, found, strict=True):
        topology = Topology(world=tp * cp * dp * pp, tp=tp, cp=cp, pp=pp)
        assert topology.dp == dp
        for name, members in groups.items():
            ours = {r: getattr(topology.coordinates(r), name) for r in range(topology.world)}
            theirs = {rank: place for group in members for place, rank in enumerate(group)}
            assert ours == theirs, (topology, name)


def test_layers_are_megatrons(ranks):
    cases = [(12, 1, 1), (12, 2, 1), (12, 4, 1), (12, 2, 2), (12, 2, 3), (12, 3, 2)]
    (found,) = ranks.run(1, jobs.megatron_layers, cases)
    for (layers, pp, vpp), offsets in zip(cases, found, strict=True):
        topology = Topology(world=pp, pp=pp, vpp=vpp)
        ours = [topology.layers_of(layers, stage) for stage in range(pp)]
        assert [[chunk[0] for chunk in stage] for stage in ours] == offsets
        everywhere = sorted(layer for stage in ours for chunk in stage for layer in chunk)
        assert everywhere == list(range(layers))
        assert {len(chunk) for stage in ours for chunk in stage} == {layers // (pp * vpp)}


def test_a_layout_that_does_not_fit_is_refused():
    parallel = ParallelConfig(tensor=2, pipeline=2, virtual_pipeline=2)
    with pytest.raises(UserError, match="6 ranks cannot hold a model laid out over 4"):
        Topology.of(parallel, 6)
    with pytest.raises(UserError, match="3 layers cannot be cut into 2 x 2 chunks"):
        Topology.of(parallel, 4).layers_of(3, 0)
    with pytest.raises(UserError, match=r"4 positive numbers .* add up to the model's 6 layers"):
        Topology.of(replace(parallel, chunk_layers=(1, 2, 2)), 4).layers_of(6, 0)


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "expected"),
    [
        (8, 4, 1, (2, 2, 2, 2)),
        (5, 2, 1, (3, 2)),  # the last has the output layer
        (5, 3, 1, (2, 2, 1)),
        (4, 3, 1, (1, 2, 1)),
        (7, 2, 2, (2, 2, 2, 1)),
        (6, 2, 2, (1, 2, 2, 1)),
        (80, 6, 1, (13, 14, 14, 13, 13, 13)),
    ],
)
def test_an_uneven_cut_spares_the_ends(layers, pp, vpp, expected):
    topology = Topology(world=pp, pp=pp, vpp=vpp)
    assert topology.layer_counts(layers) == expected
    everywhere = [
        layer
        for stage in range(pp)
        for chunk in topology.layers_of(layers, stage)
        for layer in chunk
    ]
    assert sorted(everywhere) == list(range(layers))


def test_a_given_cut_is_taken():
    topology = Topology(world=2, pp=2, chunk_layers=(1, 4))
    assert topology.layers_of(5, 0) == [[0]]
    assert topology.layers_of(5, 1) == [[1, 2, 3, 4]]


def test_ranks_of_one_command_agree(ranks):
    outcome = ("data.train: no such file\n  -> give one", "drawn by 0", True, False)
    assert ranks.run(2, jobs.agree) == [outcome, outcome]
