"""Layouts and placements that the machines have room for, the most promising first."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megarlhf.config.checks import check_rollout_shares
from megarlhf.config.layout_checks import check_engine_heads, check_parallel
from megarlhf.config.placement_checks import check_placement
from megarlhf.config.schema import RLConfig
from megarlhf.errors import UserError
from megarlhf.models.spec import ModelSpec
from megarlhf.models.weights.layout import parameters_of
from megarlhf.parallel.topology import Topology
from megarlhf.plan.advice import Change, changed, longest_sequence
from megarlhf.plan.equal_layers import have_equal_layers, with_layers
from megarlhf.plan.placements import has_critic, placements, within_limit
from megarlhf.plan.subject import Subject

TRAINED_BYTES = 18  # bf16 weights, fp32 gradients, main parameters and two moments, of each element
SIZES, EXPERTS = (1, 2, 4, 8), (1, 4, 8, 16)
# By how much a step of training is longer, roughly: only the order in which layouts are planned.
TENSOR = {1: 1.0, 2: 1.05, 4: 1.15, 8: 1.4}
PIPELINE = {1: 1.0, 2: 1.05, 4: 1.1, 8: 1.2}
RECOMPUTE = {"selective": 1.0, "full": 1.3}
FEWER_TOKENS = 1.02  # one longest sequence a micro-batch


def candidates(subject: Subject) -> list[Change]:
    """Changes of the configuration, each a layout of what is trained and a placement."""
    spec = ModelSpec.read(subject.shape_of(subject.config.model.path))
    cuts, engines = _cuts(subject, spec), within_limit(subject)
    found = [
        (burden * weight, number, engines | placement | layout)
        for number, (weight, placement) in enumerate(placements(changed(subject, engines)))
        for burden, layout in _layouts(subject, cuts, placement.get("cluster.actor_ranks"))
    ]
    found.sort(key=lambda one: one[:2])
    return [change for _, _, change in found if is_sound(subject, change, spec)]


def is_sound(subject: Subject, change: Change, spec: ModelSpec) -> bool:
    """Whether a run with this change would start."""
    config = changed(subject, change).config
    try:
        if not isinstance(config, RLConfig):
            check_parallel(config.model.parallel, spec.hf_config, subject.gpus, "GPUs")
            return True
        ranks = config.cluster.actor_ranks
        check_placement(config)
        check_engine_heads(config, spec.hf_config)
        check_parallel(config.model.parallel, spec.hf_config, ranks, "cluster.actor_ranks")
        check_rollout_shares(config, config.model.parallel, ranks)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class _Cut:
    """A way of cutting a model, and the elements of one rank."""

    tensor: int
    pipeline: int
    expert: int
    elements: int

    def bytes_at_least(self, world: int, on_host: bool) -> float:
        """That a rank of so many keeps, whose optimizer is shared by its replicas, or on the host."""
        replicas = max(1, world // (self.tensor * self.pipeline))
        return self.elements * (6 + (0 if on_host else (TRAINED_BYTES - 6) / replicas))


def _cuts(subject: Subject, spec: ModelSpec) -> list[_Cut]:
    sizes = [size for size in SIZES if size <= subject.gpus_per_node]
    experts = [size for size in EXPERTS if spec.num_experts and spec.num_experts % size == 0]
    found = []
    for tensor, pipeline, expert in itertools.product(sizes, SIZES, experts or [1]):
        world = tensor * pipeline * expert
        try:
            topology = Topology(
                world=world, tp=tensor, pp=pipeline, ep=expert, sequence_parallel=tensor > 1
            )
            elements = _elements(spec, topology)
        except (UserError, ValueError):
            continue  # the model cannot be cut like that
        found.append(_Cut(tensor, pipeline, expert, elements))
    return found


def _elements(spec: ModelSpec, topology: Topology) -> int:
    """Of the first stage."""

    def count(spec: ModelSpec) -> int:
        return sum(math.prod(p.shape) for p in parameters_of(spec, topology, 0))

    own, stages = topology.layer_counts(spec.num_layers)[0], topology.pp
    if not have_equal_layers(spec):
        return count(spec)
    low, high = (count(with_layers(spec, layers * stages)) for layers in (1, 2))
    return low + (high - low) * (own - 1)


def _layouts(
    subject: Subject, cuts: list[_Cut], ranks: int | None
) -> Iterator[tuple[float, Change]]:
    """Of the actor or the trained model, and the same of the critic; with how much they burden."""
    config = subject.config
    given = config.cluster.actor_ranks if isinstance(config, RLConfig) else subject.gpus
    longest, on_host = longest_sequence(config), config.optimizer.offload == "states"
    most = config.train.micro_batch_tokens
    following = config.rollout.max_new_tokens if isinstance(config, RLConfig) else longest
    tokens = [most, longest] if most >= longest + following else [most]
    for cut in cuts:
        if cut.bytes_at_least(ranks or given, on_host) > subject.memory:
            continue
        for recompute, most in itertools.product(RECOMPUTE, tokens):
            burden = TENSOR[cut.tensor] * PIPELINE[cut.pipeline] * RECOMPUTE[recompute]
            layout = {
                "parallel.tensor": cut.tensor,
                "parallel.sequence": cut.tensor > 1,
                "parallel.pipeline": cut.pipeline,
                **({"parallel.expert": cut.expert} if cut.expert > 1 else {}),
                "recompute": recompute,
            }
            yield (
                burden * (FEWER_TOKENS if most < tokens[0] else 1.0),
                _of_models(config, layout) | _tokens(tokens, most),
            )


def _of_models(config: Any, layout: Change) -> Change:
    sections = ["model"]
    if isinstance(config, RLConfig) and has_critic(config):
        sections.append("critic")
    return {f"{section}.{key}": value for section in sections for key, value in layout.items()}


def _tokens(tokens: list[int], most: int) -> Change:
    return {"train.micro_batch_tokens": most} if len(tokens) > 1 else {}
