"""Adapters reach a live vLLM engine: only their bytes travel, and it samples from the merged weights."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from megarlhf.errors import UserError
from megarlhf.models.lora.adapter import PREFIX, Adapter, AdapterSpec
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology
from megarlhf.sync.adapter_layout import adapted_parts, adapter_parameters
from megarlhf.sync.adapter_sender import AdapterSender
from megarlhf.sync.adapters import EngineAdapters
from megarlhf.sync.engine_layout import EngineTopology, engine_parameters
from megarlhf.sync.landing import Landing
from megarlhf.sync.transports import open_inlet
from tests.models.tiny import StandIn, read_tensors
from tests.models.zoo import write_model
from tests.rollout.engine_process import (
    CPU,
    GREEDY,
    EngineProcess,
    Trainer,
    prompts_of,
    settings_of,
)
from tests.rollout.models import write_engine_model
from tests.rollout.test_updates import DAMAGED, TOLERANCE, damage
from tests.sync.jobs import engine_model

PROMPTS = prompts_of([5, 6, 7], [1, 2, 3, 4, 5])
ADAPTER = Adapter(4, 6.0, ("q_proj", "v_proj", "o_proj", "down_proj"))


class AdapterTrainer(Trainer):
    """A `Trainer` whose model is frozen."""

    def __init__(self, path, topology, **settings):
        super().__init__(path, topology, EngineTopology(), **settings)
        self.adapters = AdapterSpec.of(self.spec, ADAPTER)
        self._chunks = [[StandIn(self._held(rank))] for rank in range(topology.world)]
        self.senders = [AdapterSender(self.adapters, c, r) for r, c in enumerate(self._chunks)]

    def _held(self, rank):
        specs = (self.spec, self.adapters)
        return [p for spec in specs for p in parameters_of(spec, self.topology, rank)]

    def load(self, tensors):
        for rank, (chunk,) in enumerate(self._chunks):
            live = dict(chunk.named_parameters())
            for parameter in self._held(rank):
                for piece in parameter.pieces:
                    name = parameter.sources[piece.source]
                    if name in tensors:
                        values = tensors[name][piece.hf.slices]
                        live[parameter.name][piece.local.slices] = values

    def info(self, number):
        return replace(super().info(number), adapters=asdict(ADAPTER), adapter_dtype="float32")


def new_adapters(spec, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.2 * torch.randn(shape, generator=generator) for n, shape in spec.tensors.items()}


def merged(tensors, adapters):
    found = dict(tensors)
    for name, weight in tensors.items():
        module = PREFIX + name.removesuffix("weight")
        if f"{module}lora_A.weight" in adapters:
            down, up = (adapters[f"{module}lora_{m}.weight"] for m in "AB")
            found[name] = weight + ADAPTER.scaling * up @ down
    return found


def true_logprobs(path, weights, samples, directory):
    """Hugging Face's, of every token that was sampled."""
    from transformers import AutoModelForCausalLM

    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_bytes((path / "config.json").read_bytes())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    found = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt.token_ids, *sample.response_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        of_tokens = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
        found.append(of_tokens[-len(sample.response_ids) :].tolist())
    return found


def test_only_adapters_travel_once_the_base_is_there(tmp_path):
    path = write_engine_model("qwen3-moe", tmp_path / "model")
    tensors = read_tensors(path)
    engine = EngineProcess(settings_of(path))
    try:
        trainer = AdapterTrainer(path, Topology(world=2, tp=2), transport="shared_memory")
        trainer.load(tensors)
        trainer.connect(0, engine)
        of_base = sum(tensor.nbytes for tensor in tensors.values())
        of_adapters = sum(
            4 * torch.Size(shape).numel() for shape in trainer.adapters.tensors.values()
        )
        assert of_adapters < of_base / 5
        for version, expected in ((1, of_base + of_adapters), (2, of_adapters), (3, of_adapters)):
            adapters = new_adapters(trainer.adapters, version)
            trainer.load(adapters)
            sent = trainer.update({0: engine}, version)
            assert sum(one.nbytes for on_rank in sent for one in on_rank.values()) == expected
            groups = engine.call("generate", PROMPTS, GREEDY, [0, 0])
            samples = [sample for group in groups for sample in group]
            truth = true_logprobs(path, merged(tensors, adapters), samples, tmp_path)
            for sample, logprobs in zip(samples, truth, strict=True):
                assert sample.policy_version == version
                assert sample.rollout_logprobs == pytest.approx(logprobs, abs=TOLERANCE)
            assert trainer.verify({0: engine}) > 60
        engine.call(damage, DAMAGED["moe"])
        with pytest.raises(UserError, match=r"w2_weight is not the base with the adapters"):
            trainer.verify({0: engine})
        trainer.connect(0, engine)  # as one that takes a lost one's place
        sent = trainer.update({0: engine}, 4)
        assert sum(one.nbytes for r in sent for one in r.values()) == of_base + of_adapters
        trainer.verify({0: engine})
    finally:
        engine.close()


class EngineEnd:
    """The engine's end of the two links, without vLLM."""

    def __init__(self, spec, info):
        self.layout = engine_parameters(spec.base, info.engine_topology, 0)
        self.model = engine_model(self.layout, torch.float32)
        self.plan, self.landing = info.plan(spec.base), Landing(self.model, self.layout)
        self.inlet = open_inlet(info, self.plan, 0, CPU, self.landing)
        of_adapters = info.of_adapters()
        self.adapters = EngineAdapters(spec, of_adapters, 0, CPU, self.landing, self.layout)

    def receive(self):
        """As `Receiver` does."""
        if not self.adapters.has_base:
            self.inlet.begin()
            for bucket in self.plan:
                values = self.inlet.receive(bucket, bucket.messages[0, 0])
                self.adapters.keep(values)
                self.landing.finish(values)
                self.inlet.done(bucket)
        self.adapters.receive()

    def pieces(self):
        """Every piece, with its values."""
        for parameter in self.layout:
            module = self.model.get_submodule(parameter.module)
            live = self.landing.live(parameter.name)
            values = live.data if live.numel() else module.packed
            for piece in parameter.pieces:
                yield piece, values[piece.local.slices].view(piece.hf.shape)


@pytest.mark.parametrize("transport", ["gloo", "shared_memory"])
@pytest.mark.parametrize("family", ["llama", "qwen2-moe"])
def test_an_engine_merges_what_it_is_sent(tmp_path, family, transport):
    path = write_model(family, tmp_path)
    tensors = read_tensors(path)
    trainer = AdapterTrainer(path, Topology(world=2, tp=2), transport=transport)
    trainer.load(tensors)
    info = trainer.info(0)
    with ThreadPoolExecutor(1) as other:
        joining = other.submit(EngineEnd, trainer.adapters, info)
        trainer._on_every_rank(lambda sender: sender.connect(info, CPU))
        engine = joining.result()
        of_base = sum(tensor.nbytes for tensor in tensors.values())
        for update in range(3):
            adapters = new_adapters(trainer.adapters, update)
            trainer.load(adapters)
            receiving = other.submit(engine.receive)
            sent = trainer.send([0])
            receiving.result()
            of_adapters = sum(tensor.nbytes for tensor in adapters.values())
            nbytes = sum(one.nbytes for on_rank in sent for one in on_rank.values())
            assert nbytes == of_adapters + (0 if update else of_base)
            whole = merged(tensors, adapters)
            for piece, values in engine.pieces():
                # Products of parts and of the whole may round otherwise; seen equal.
                assert torch.allclose(values, whole[piece.tensor][piece.hf.slices], atol=1e-6)


@pytest.mark.parametrize(
    "engine", [EngineTopology(tp=2), EngineTopology(tp=2, expert_parallel=True)]
)
def test_each_rank_of_an_engine_gets_what_its_weights_need(tmp_path, engine):
    """Merged by rectangles it is the whole, merged."""
    path = write_engine_model("qwen3-moe", tmp_path)
    tensors, spec = read_tensors(path), AdapterSpec.of(ModelSpec.read(path), ADAPTER)
    adapters = new_adapters(spec, 0)
    whole = merged(tensors, adapters)
    for rank in range(engine.tp):
        layout = {p.name: p for p in engine_parameters(spec.base, engine, rank)}
        sent = {p.name for p in adapter_parameters(spec, engine, rank)}
        for part in adapted_parts(spec, engine, rank):
            assert {part.down.name, part.up.name} <= sent
            down, up = (
                adapters[matrix.pieces[0].tensor][matrix.pieces[0].hf.slices]
                for matrix in (part.down, part.up)
            )
            (piece,) = (p for p in layout[part.parameter].pieces if p.local == part.target)
            added = whole[piece.tensor] - tensors[piece.tensor]
            assert torch.allclose(ADAPTER.scaling * up @ down, added[piece.hf.slices], atol=1e-6)
