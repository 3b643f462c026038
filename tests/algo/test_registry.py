"""The rows, their defaults, the user's own, and what they ask of the settings."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megarlhf.algo import advantages, surrogates
from megarlhf.algo.credit import Scores
from megarlhf.algo.registry import ALGORITHMS, COMMON_DEFAULTS, filled, find
from megarlhf.algo.rules import check_algorithm
from megarlhf.config.schema import AlgorithmConfig, RLConfig, RolloutConfig
from megarlhf.errors import UserError

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "algorithms.md"
OWN = """
import torch
from megarlhf.algo.credit import Credit
from megarlhf.algo.registry import Algorithm

def estimate(scores, config):
    return Credit(scores.mask * scores.outcome.reshape(-1, 1))

def surrogate(tokens, config):
    return -tokens.advantages * tokens.logprobs, torch.zeros_like(tokens.mask, dtype=torch.bool)

ALGORITHM = Algorithm("plain", estimate, surrogate, defaults={"kl_coef": 0.25})
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "my_algorithm.py"
    file.write_text(OWN)
    return file


def test_a_row_has_defaults_for_what_is_left_to_it_alone():
    for row in ALGORITHMS.values():
        assert row.defaults.keys() <= COMMON_DEFAULTS.keys()


def test_the_settings_left_to_the_algorithm_are_those_that_are_null():
    left = {key for key in COMMON_DEFAULTS if getattr(AlgorithmConfig(), key) is not None}
    assert left == set()


def test_grpo_is_what_it_was():
    grpo, config = find("grpo"), filled(AlgorithmConfig())
    assert (grpo.estimate, grpo.surrogate) == (advantages.grpo, surrogates.clipped)
    assert grpo.min_samples == 2
    assert (config.clip_low, config.clip_high) == (0.2, 0.2)
    assert (config.kl_coef, config.kl_estimator, config.kl_in) == (0.001, "k3", "loss")
    assert config.aggregation == "sequence_mean"


def test_a_row_fills_in_what_was_not_set_and_nothing_else():
    assert filled(AlgorithmConfig(name="dapo")).clip_high == 0.28
    assert filled(AlgorithmConfig(name="dapo", clip_high=0.2)).clip_high == 0.2
    assert filled(AlgorithmConfig(name="dapo", dynamic_filtering=False)).dynamic_filtering is False
    assert filled(AlgorithmConfig(name="dapo", overlong_buffer=0)).overlong_buffer == 0
    config = filled(AlgorithmConfig(name="rloo", gamma=0.5))
    assert filled(config) == config
    assert config.gamma == 0.5


@pytest.mark.parametrize(
    ("name", "hint"),
    [("gpro", "did you mean grpo"), ("sarsa-lambda", "known: grpo"), ("dappo", "mean dapo")],
)
def test_an_unknown_algorithm_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UserError) as error:
        find(name)
    assert "algorithm.name" in str(error.value)
    assert repr(name) in str(error.value)
    assert hint in str(error.value)


# -- the user's own -------------------------------------------------------------------------------


def test_a_row_from_a_file(own):
    row = find("grpo", str(own))
    assert (row.name, row.file) == ("plain", str(own))
    assert filled(AlgorithmConfig(file=str(own))).kl_coef == 0.25
    assert filled(AlgorithmConfig(file=str(own), kl_coef=0.5)).kl_coef == 0.5


def test_the_documentation_lists_the_rows_and_its_example_is_one(tmp_path):
    text = DOCUMENTATION.read_text()
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert listed[1:] == [*ALGORITHMS]  # after the heading
    file = tmp_path / "my_algorithm.py"
    file.write_text(text.split("```python\n")[1].split("```")[0])
    row = find("grpo", str(file))
    scores = Scores(torch.tensor([[1.0, 3.0]]).double(), torch.zeros(2, 2), torch.ones(2, 2))
    assert row.estimate(scores, AlgorithmConfig()).advantages.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_rows_travel_by_name(own):
    for row in (*ALGORITHMS.values(), find("grpo", str(own))):
        assert pickle.loads(pickle.dumps(row)) == row
    assert len(pickle.dumps(find("grpo", str(own)))) < 300


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ALGORITHM = 3", "ALGORITHM is a int"),
        ("x = 3", "defines no ALGORITHM"),
        ("1 / 0", "ZeroDivisionError"),
        ("import nothing_like_this", "nothing_like_this"),
        (OWN.replace("kl_coef", "gamma"), "no default for gamma"),
        (None, "no such Python file"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, what):
    file = tmp_path / "wrong.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        find("grpo", str(file))
    assert what in caught.value.what
    assert caught.value.where == f"algorithm.file={file}"
    assert caught.value.fix


# -- rules ----------------------------------------------------------------------------------------


def checked(samples=4, **changes):
    config = AlgorithmConfig(**changes)
    rl = replace(RLConfig(), algorithm=config, rollout=RolloutConfig(samples_per_prompt=samples))
    check_algorithm(find(config.name, config.file), rl)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "ppo"])
def test_the_rows_pass_their_own_rules(name):
    checked(name=name)
    checked(name=name, kl_coef=0.1, kl_target=0.1, correction="tis")


@pytest.mark.parametrize(
    ("changes", "where", "parts"),
    [
        ({"samples": 1}, "rollout.samples_per_prompt", ["at least 2", "grpo", "got 1"]),
        ({"samples": 1, "name": "dapo"}, "rollout.samples_per_prompt", ["dapo"]),
        (
            {"samples": 1, "name": "reinforce_plus_plus", "dynamic_filtering": True},
            "algorithm.dynamic_filtering",
            ["compares the samples"],
        ),
        ({"gamma": 0.9}, "algorithm.gamma", ["grpo does not discount"]),
        ({"kl_coef": 0.0, "kl_target": 0.1}, "algorithm.kl_target", ["algorithm.kl_coef=0"]),
        ({"name": "gspo", "kl_target": 0.1}, "algorithm.kl_target", ["algorithm.kl_coef=0"]),
        ({"correction_low": 6.0}, "algorithm.correction_low", ["correction_high (5.0), got 6.0"]),
    ],
)
def test_what_does_not_fit_is_refused(changes, where, parts):
    with pytest.raises(UserError) as caught:
        checked(**changes)
    assert caught.value.where == where
    assert caught.value.fix
    assert all(part in str(caught.value) for part in parts)


def test_discounting_is_for_those_that_do():
    checked(name="reinforce_plus_plus", gamma=0.9, samples=1)
