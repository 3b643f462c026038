"""Adapters in PEFT's format: read, refused, merged."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megarlhf.cli import main
from megarlhf.errors import UserError
from megarlhf.models.lora import base_print, peft_config
from megarlhf.models.lora.adapter import Adapter, AdapterSpec
from megarlhf.models.lora.merging import merge
from megarlhf.models.lora.quantized import check_quantizable
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import holdings
from megarlhf.parallel.topology import Topology
from tests.lora.jobs import write_adapters
from tests.models.tiny import read_tensors, write_llama
from tests.models.zoo import write_model

PREFIX = peft_config.PREFIX


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("files") / "model")


@pytest.fixture
def adapters(llama, tmp_path):
    write_adapters(tmp_path / "adapter", llama)
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", ["llama", "qwen2-moe", "deepseek-v2"])
@pytest.mark.parametrize(
    "topology", [Topology(1), Topology(4, tp=2, pp=2), Topology(4, tp=4), Topology(4, tp=2, ep=2)]
)
def test_every_element_of_every_adapter_is_somewhere_once(tmp_path, family, topology):
    spec = ModelSpec.read(write_model(family, tmp_path))
    if topology.ep > 1 and not spec.num_experts:
        pytest.skip("no experts")
    adapters = AdapterSpec.of(spec, Adapter(3, 6.0, ("q_proj", "up_proj", "down_proj", "o_proj")))
    for name, parts in holdings(adapters, topology).items():
        covered = torch.zeros(adapters.tensors[name])
        for part in parts:
            covered[part.piece.hf.slices] += 1
        assert covered.eq(1).all(), name


def test_what_is_written_is_read(llama, adapters):
    spec = peft_config.read(adapters, ModelSpec.read(llama))
    assert spec.adapter.rank == 3
    assert spec.adapter.scaling == 7 / 3
    assert set(spec.adapter.targets) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_merging_replaces_nothing_but_models(llama, adapters, tmp_path):
    for place in (adapters, tmp_path, llama):
        with pytest.raises(UserError, match="also an input, or holds one"):
            merge(llama, adapters, place)
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match="exists already, and is no model"):
        merge(llama, adapters, tmp_path / "notes")


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_the_base_with_the_products(llama, tmp_path, rslora):
    tensors = write_adapters(
        tmp_path / "adapter", llama, targets=("q_proj", "down_proj"), rslora=rslora
    )
    paths = {"base": llama, "adapter": tmp_path / "adapter", "output": tmp_path / "merged"}
    assert main(["merge-lora", *(f"--{name}={path}" for name, path in paths.items())]) == 0
    scaling = 7 / (math.sqrt(3) if rslora else 3)
    found, adapted = read_tensors(tmp_path / "merged"), 0
    for name, base in read_tensors(llama).items():
        module = PREFIX + name.removesuffix("weight")
        expected = base.double()
        if f"{module}lora_A.weight" in tensors:
            adapted += 1
            up, down = (tensors[f"{module}lora_{m}.weight"].double() for m in "BA")
            expected = expected + scaling * up @ down
        # fp32: rounding of 1e-7 of elements near 1.
        assert torch.allclose(found[name].double(), expected, rtol=1e-6, atol=3e-7), name
    assert adapted == 8
    again = ModelSpec.read(tmp_path / "merged")
    assert again.hf_config == ModelSpec.read(llama).hf_config
    assert (tmp_path / "merged" / "fingerprint.json").is_file()


def test_a_reward_models_head_comes_with_its_adapters(llama, tmp_path):
    adapter = Adapter(2, 4.0, ("all-linear",))
    spec = AdapterSpec.of(ModelSpec.read(llama, scalar_head="score"), adapter)
    tensors = {name: torch.randn(shape) for name, shape in spec.tensors.items()}
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / peft_config.WEIGHTS)
    peft_config.write_config(spec, tmp_path / "adapter")
    merge(llama, tmp_path / "adapter", tmp_path / "merged", torch.bfloat16)
    found = read_tensors(tmp_path / "merged")
    assert torch.equal(found["score.weight"], tensors[PREFIX + "score.weight"].bfloat16())
    assert "lm_head.weight" not in found
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    with pytest.raises(UserError, match="whose head is score"):
        peft_config.read(tmp_path / "adapter", ModelSpec.read(llama))


def test_adapters_for_another_base_are_refused(llama, adapters, tmp_path):
    spec = ModelSpec.read(llama)
    base_print.check(adapters, spec)  # from elsewhere: nothing says which base they are for
    base_print.write(adapters, base_print.of_base(spec))
    base_print.check(adapters, spec)
    shutil.copytree(llama, tmp_path / "other")
    (file,) = (tmp_path / "other").glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match="another base"):
        base_print.check(adapters, ModelSpec.read(tmp_path / "other"))
    with pytest.raises(UserError, match="another base"):
        merge(tmp_path / "other", adapters, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def change(directory, **settings):
    file = directory / peft_config.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' is not"),
        ({"r": 0}, "must be greater than 0"),
        ({"r": 4}, "has shape"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "only a reward model's head"),
    ],
)
def test_other_adapters_are_refused(llama, adapters, settings, said):
    change(adapters, **settings)
    with pytest.raises(UserError) as refused:
        peft_config.read(adapters, ModelSpec.read(llama))
    assert said in str(refused.value)


def test_missing_and_unknown_tensors_are_refused(llama, adapters):
    file = adapters / peft_config.WEIGHTS
    tensors = load_file(file)
    gone = tensors.pop(f"{PREFIX}model.layers.1.mlp.up_proj.lora_B.weight")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.lora_B\.weight is missing"):
        peft_config.read(adapters, ModelSpec.read(llama))
    tensors[f"{PREFIX}model.layers.1.mlp.up_proj.lora_B.weight"] = gone
    tensors[f"{PREFIX}model.embed_tokens.lora_embedding_A"] = gone.clone()
    save_file(tensors, file)
    with pytest.raises(UserError, match="not of the linears"):
        peft_config.read(adapters, ModelSpec.read(llama))


def test_an_unknown_target_is_named(llama):
    with pytest.raises(UserError, match="no linear c_attn") as refused:
        AdapterSpec.of(ModelSpec.read(llama), Adapter(4, 8.0, ("c_attn",)))
    assert "q_proj" in refused.value.fix


def test_rows_that_are_no_whole_blocks_are_refused(llama):
    with pytest.raises(UserError, match=r"rows of 32 elements on a rank: nf4 quantizes 64"):
        check_quantizable(ModelSpec.read(llama), Topology(1), double=False)


def test_scales_that_are_no_whole_groups_are_refused(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 8}
    spec = ModelSpec.read(write_llama(tmp_path, **sizes))
    check_quantizable(spec, Topology(2, tp=2), double=False)
    with pytest.raises(
        UserError, match=r"q_proj\.weight and .* do not meet on a rank at multiples"
    ):
        check_quantizable(spec, Topology(2, tp=2), double=True)
