"""The layout map on whole models: pure shapes, no weights."""

import json
from collections import Counter
from itertools import product

import pytest
import torch

from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import holdings, parameters_of
from megarlhf.parallel.topology import Topology
from tests.models.tiny import CONFIG

TOPOLOGIES = [
    Topology(world=tp * pp * dp, tp=tp, pp=pp, vpp=vpp)
    for tp, pp, vpp, dp in product((1, 2, 4), (1, 2, 4), (1, 2), (1, 2))
    if vpp == 1 or pp > 1
]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """Specs without weights: untied and tied; 8 layers, so that 4 stages take 2 chunks each."""
    found = {}
    for tied in (False, True):
        directory = tmp_path_factory.mktemp("config")
        sizes = {"num_hidden_layers": 8, "num_key_value_heads": 4, "tie_word_embeddings": tied}
        config = {"architectures": ["LlamaForCausalLM"], **CONFIG, **sizes}
        (directory / "config.json").write_text(json.dumps(config))
        found[tied] = ModelSpec.read(directory)
    return found


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def spec(specs, request):
    return specs[request.param]


def test_every_element_of_every_tensor_has_one_holder_that_has_it(spec):
    for topology in TOPOLOGIES:
        has = {
            (rank, parameter.chunk, parameter.name, parameter.sources[piece.source], piece)
            for rank in range(topology.world)
            for parameter in parameters_of(spec, topology, rank)
            for piece in parameter.pieces
        }
        held = holdings(spec, topology)
        assert list(held) == list(spec.tensors)
        for name, shape in spec.tensors.items():
            covered = torch.zeros(shape, dtype=torch.uint8)
            for holding in held[name]:
                assert holding.name == name
                assert (
                    holding.rank,
                    holding.chunk,
                    holding.parameter,
                    name,
                    holding.piece,
                ) in has, topology
                covered[holding.piece.hf.slices] += 1
            assert (covered == 1).all(), (topology, name)


def test_replicas_give_even_shares(spec):
    """Any two ranks that hold the same differ by at most the largest rectangle.

    The least loaded holder gives, so the spread among equal holders cannot grow beyond it.
    """
    for topology in TOPOLOGIES:
        if topology.dp == 1:
            continue
        given = Counter(dict.fromkeys(range(topology.world), 0))
        largest = 0
        for parts in holdings(spec, topology).values():
            for part in parts:
                given[part.rank] += part.piece.hf.numel
                largest = max(largest, part.piece.hf.numel)
        replicas = {}
        for rank, elements in given.items():
            place = topology.coordinates(rank)
            replicas.setdefault((place.tp, place.pp), []).append(elements)
        for elements in replicas.values():
            assert max(elements) - min(elements) <= largest, topology
            assert min(elements) > 0, topology


def test_parameters_are_numbered_as_in_their_chunk(specs):
    topology = Topology(world=8, tp=2, pp=4, vpp=2)
    names = {
        (parameter.chunk, parameter.name): parameter.sources
        for parameter in parameters_of(specs[False], topology, rank=7)  # tensor 1, last stage
    }
    norm = "decoder.layers.0.input_layernorm.weight"
    assert names[0, norm] == ("model.layers.3.input_layernorm.weight",)
    assert names[1, norm] == ("model.layers.7.input_layernorm.weight",)
    assert names[1, "decoder.final_layernorm.weight"] == ("model.norm.weight",)
    assert names[1, "output_layer.weight"] == ("lm_head.weight",)
    assert {chunk for chunk, name in names if not name.startswith("decoder.layers.")} == {1}


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        (Topology(world=1), [(0, 0, "embedding.word_embeddings.weight")]),
        (
            Topology(world=2, pp=2),
            [(0, 0, "embedding.word_embeddings.weight"), (1, 0, "output_layer.weight")],
        ),
        (
            Topology(world=2, pp=2, vpp=2),
            [(0, 0, "embedding.word_embeddings.weight"), (1, 1, "output_layer.weight")],
        ),
    ],
)
def test_tied_embeddings_are_one_tensor_and_a_copy_on_the_last_stage(specs, topology, expected):
    found = [
        (rank, parameter.chunk, parameter.name)
        for rank in range(topology.world)
        for parameter in parameters_of(specs[True], topology, rank)
        if parameter.sources == ("model.embed_tokens.weight",)
    ]
    assert found == expected
    assert "lm_head.weight" not in specs[True].tensors
    assert "lm_head.weight" in specs[False].tensors
