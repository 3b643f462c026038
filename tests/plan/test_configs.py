"""The configurations for clusters: each is sound and is planned."""

import re
from pathlib import Path

import pytest

from megarlhf.config import checks
from megarlhf.config.ranges import check_ranges
from megarlhf.config.schema import RLConfig
from megarlhf.plan.hardware import Calibration
from megarlhf.plan.subject import KNOWN_MODELS, read_subject
from tests.plan import jobs

CONFIGS = Path(__file__).parents[2] / "configs"
NAMED = re.compile(r".+_(\d+)x(\d+)([a-z][a-z0-9-]*?)(_hybrid)?\.yaml")
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if NAMED.fullmatch(file.name))

each = pytest.mark.parametrize("file", FILES, ids=[f"{f.parent.name}/{f.stem}" for f in FILES])


def subject_of(file, *overrides):
    return read_subject(file, overrides, calibration=Calibration())


@each
def test_it_is_sound_and_named_for_its_machines(file):
    subject = subject_of(file)
    check_ranges(subject.config)
    if isinstance(subject.config, RLConfig):
        checks.check_rollout_batch(subject.config)
    nodes, gpus, gpu, _ = NAMED.fullmatch(file.name).groups()
    assert (subject.nodes, subject.gpus_per_node, subject.gpu.name) == (int(nodes), int(gpus), gpu)


@each
def test_it_is_planned_and_fits(ranks, file):
    ((verdict, places),) = ranks.run(1, jobs.plan, str(file))
    assert verdict != "does not fit"
    assert all(peak <= memory for _, peak, memory in places)


def test_every_model_that_is_named_has_a_shape():
    named = {subject_of(file).shape_of(subject_of(file).config.model.path) for file in FILES}
    assert named <= set(KNOWN_MODELS.iterdir())
