"""PEFT itself reads our files and computes what our reference does."""

import json

import peft
import pytest
import torch

from megarlhf.models.lora import peft_config
from megarlhf.models.lora.merging import merge
from megarlhf.models.spec import ModelSpec
from tests.engine.jobs import make_sequences
from tests.lora import reference
from tests.lora.jobs import write_adapters
from tests.models.tiny import read_tensors, write_llama
from tests.models.zoo import write_model


def load(model, adapters, dtype=torch.float64):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    return peft.PeftModel.from_pretrained(base, adapters, is_trainable=True).to(dtype)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_trains_as_the_reference_of_the_layouts(tmp_path, rslora):
    """Losses and gradients' norms over steps, in fp64: seen 1e-15."""
    model = write_llama(tmp_path / "model")
    tensors = write_adapters(tmp_path / "adapter", model, rslora=rslora)
    sequences = make_sequences(101, (17, 5, 30, 9))
    scaling = 7 / (3**0.5 if rslora else 3)
    plain = reference.adapted_model(model, tensors, scaling)
    ours, theirs = (
        reference.train(made, sequences, 3) for made in (plain, load(model, tmp_path / "adapter"))
    )
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == pytest.approx(other, rel=1e-10)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine == pytest.approx(other, abs=1e-10)


def test_we_read_what_peft_writes(tmp_path):
    model = write_llama(tmp_path / "model")
    write_adapters(tmp_path / "adapter", model, targets=("q_proj", "v_proj"))
    load(model, tmp_path / "adapter").save_pretrained(tmp_path / "theirs")
    found = peft_config.read(tmp_path / "theirs", ModelSpec.read(model))
    assert found.adapter.targets == ("q_proj", "v_proj")
    ours, theirs = (read_tensors(tmp_path / name) for name in ("adapter", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].double(), theirs[name].double()) for name in ours)


def test_a_reward_models_adapters(tmp_path):
    """PEFT names two heads of a classifier and stores the one that there is."""
    from transformers import AutoModelForSequenceClassification

    def scorer(path):
        made = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
        return made.double().eval()

    model = write_model("llama", tmp_path / "model")
    tensors = write_adapters(tmp_path / "adapter", model, head="score")
    merge(model, tmp_path / "adapter", tmp_path / "merged")
    theirs = peft.PeftModel.from_pretrained(scorer(model), tmp_path / "adapter")
    ids = torch.randint(0, 101, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = [made(ids).logits.item() for made in (theirs, scorer(tmp_path / "merged"))]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # merged weights are in fp32
    theirs.save_pretrained(tmp_path / "theirs")
    named = json.loads((tmp_path / "theirs" / peft_config.CONFIG).read_text())["modules_to_save"]
    assert set(named) == {"classifier", "score"}
    assert peft_config.head_of(tmp_path / "theirs") == "score"
    found = peft_config.read(tmp_path / "theirs", ModelSpec.read_scalar(model))
    assert found.tensors.keys() == tensors.keys()


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3-moe"])
def test_peft_with_our_adapters_is_the_merged_model(tmp_path, family):
    from transformers import AutoModelForCausalLM

    model = write_model(family, tmp_path / "model")
    write_adapters(tmp_path / "adapter", model)
    merge(model, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = torch.randint(0, 101, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = merged(ids).logits
        found = load(model, tmp_path / "adapter", torch.float32)(ids).logits
    assert (found - expected).abs().max() < 1e-5  # seen 6.5e-6, of logits up to 3.7
