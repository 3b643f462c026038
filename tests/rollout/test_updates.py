"""A live vLLM engine and new weights: right ones, damaged ones, and ones that come while it samples."""

import time

import pytest
import torch
from safetensors.torch import save_file

from megarlhf.errors import UserError
from megarlhf.parallel.topology import Topology
from megarlhf.rollout.settings import Sampling
from megarlhf.sync.engine_layout import EngineTopology
from tests.models.tiny import read_tensors
from tests.rollout.engine_process import GREEDY, EngineProcess, Trainer, prompts_of, settings_of
from tests.rollout.models import write_engine_model

PROMPTS = prompts_of([5, 6, 7], [1, 2, 3, 4, 5])
LONG = Sampling(2, 1.0, 1.0, -1, 48)
TOLERANCE = 2e-5  # of log-probabilities; seen 1.3e-5 at most, with weights changed twice as much


class Setup:
    """An engine, a trainer of two ranks connected to it, and the model's tensors."""

    def __init__(self, family, directory, transport, *, packed, topology, **settings):
        self.path = write_engine_model(family, directory)
        self.tensors = read_tensors(self.path)
        self.engine = EngineProcess(settings_of(self.path, **settings), packed=packed)
        self.trainer = Trainer(self.path, topology, EngineTopology(), transport=transport)
        self.trainer.connect(0, self.engine)
        self.version = 0

    def update(self):
        """To other weights; they are returned."""
        self.version += 1
        weights = self.other_weights(self.version)
        self.trainer.load(weights)
        sent = self.trainer.update({0: self.engine}, self.version)
        assert [one.error for on_rank in sent for one in on_rank.values()] == [None, None]
        return weights, sum(one.nbytes for on_rank in sent for one in on_rank.values())

    def other_weights(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in self.tensors.items()
        }

    def true_logprobs(self, weights, samples, directory):
        """Hugging Face's, of every token that was sampled."""
        from transformers import AutoModelForCausalLM

        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_bytes((self.path / "config.json").read_bytes())
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        found = []
        with torch.no_grad():
            for sample in samples:
                ids = torch.tensor([[*sample.prompt.token_ids, *sample.response_ids]])
                logprobs = model(ids).logits[0, :-1].log_softmax(-1)
                of_tokens = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
                found.append(of_tokens[-len(sample.response_ids) :])
        return found


@pytest.fixture(
    scope="module",
    params=[
        ("qwen3-moe", "shared_memory", True, Topology(world=2, tp=2)),
        ("qwen2-tied", "gloo", False, Topology(world=2, pp=2)),
    ],
    ids=["moe.shared.packed", "tied.gloo.plain"],
)
def setup(request, tmp_path_factory):
    family, transport, packed, topology = request.param
    made = Setup(
        family,
        tmp_path_factory.mktemp("model"),
        transport,
        packed=packed,
        topology=topology,
        during_generation="keep",
    )
    yield made
    made.engine.close()


def test_after_every_update_the_engine_is_the_new_model(setup, tmp_path):
    for _ in range(3):
        weights, nbytes = setup.update()
        assert nbytes == sum(tensor.nbytes for tensor in setup.tensors.values())
        groups = setup.engine.call("generate", PROMPTS, GREEDY, [0, 0])
        samples = [sample for group in groups for sample in group]
        assert {sample.policy_version for sample in samples} == {setup.version}
        truth = setup.true_logprobs(weights, samples, tmp_path)
        for sample, expected in zip(samples, truth, strict=True):
            assert sample.rollout_logprobs == pytest.approx(expected.tolist(), abs=TOLERANCE)
        assert setup.trainer.verify({0: setup.engine}) > 30


DAMAGED = {"moe": "experts.routed_experts.w2_weight", "tied": "o_proj.weight"}


def damage(engine, name):
    """Change one element of a live parameter, in whatever layout the engine keeps it."""

    def change(model):
        parameter = next(p for n, p in model.named_parameters() if n.endswith(name))
        parameter.data.view(-1)[7] += 1e-3

    engine._llm.apply_model(change)


def test_a_damaged_weight_is_found_and_named(setup, request):
    setup.update()
    is_mixture = "moe" in request.node.callspec.id
    setup.engine.call(damage, DAMAGED["moe" if is_mixture else "tied"])
    with pytest.raises(UserError, match=r"down_proj" if is_mixture else r"o_proj") as caught:
        setup.trainer.verify({0: setup.engine})
    assert "engine 0 does not have the trainer's model.layers.0" in caught.value.what
    setup.update()
    setup.trainer.verify({0: setup.engine})


def test_requests_go_on_with_the_new_weights_and_every_token_has_its_version(setup, tmp_path):
    before, _ = setup.update()
    prompts, seeds = PROMPTS * 4, list(range(8))
    for _ in range(5):
        running = setup.engine.start("generate", prompts, LONG, seeds)
        time.sleep(0.1)
        after, _ = setup.update()
        samples = [s for group in setup.engine.wait(running) for s in group]
        changed = [sample for sample in samples if len(sample.version_spans) == 2]
        if changed:
            break
        before = after
    assert changed, "no update fell into the sampling"
    old, new = setup.version - 1, setup.version
    truths = [setup.true_logprobs(weights, changed, tmp_path) for weights in (before, after)]
    for sample, by_old, by_new in zip(changed, *truths, strict=True):
        (first, cut), (second, end) = sample.version_spans
        assert (first, second, end) == (old, new, len(sample.response_ids))
        assert sample.policy_version == old
        expected = [*by_old[:cut].tolist(), *by_new[cut:].tolist()]
        assert sample.rollout_logprobs == pytest.approx(expected, abs=TOLERANCE)


def change_mode(engine, mode):
    """As if the engine had been built with this ``during_generation``."""
    engine._generation._mode = mode


@pytest.mark.parametrize("mode", ["wait", "abort"])
def test_requests_end_before_an_update_or_begin_again_after_it(setup, tmp_path, mode):
    """No response is of two versions; every token's log-probability is its version's."""
    setup.engine.call(change_mode, mode)
    try:
        before, _ = setup.update()
        old = setup.version
        running = setup.engine.start("generate", PROMPTS * 4, LONG, list(range(8)))
        time.sleep(0.1)
        after, _ = setup.update()
        samples = [s for group in setup.engine.wait(running) for s in group]
    finally:
        setup.engine.call(change_mode, "keep")
    assert all(len(sample.version_spans) == 1 for sample in samples)
    if mode == "wait":  # the requests came first, or waited as a whole
        assert len({sample.policy_version for sample in samples}) == 1
    truths = {
        old: setup.true_logprobs(before, samples, tmp_path),
        setup.version: setup.true_logprobs(after, samples, tmp_path),
    }
    for index, sample in enumerate(samples):
        expected = truths[sample.policy_version][index].tolist()
        assert sample.rollout_logprobs == pytest.approx(expected, abs=TOLERANCE)
