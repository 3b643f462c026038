"""Every file under configs/ is one that a command takes."""

import re
from pathlib import Path

import pytest

from megarlhf.agents.user_agent import load_agent, load_program
from megarlhf.config import loader
from megarlhf.config.checks import check_rollout_batch
from megarlhf.config.data_checks import check_input_text
from megarlhf.config.ranges import check_ranges
from megarlhf.config.schema import RLConfig
from megarlhf.plan.subject import OFFLINE
from megarlhf.rewards.function_file import load_reward_function

CONFIGS = Path(__file__).parents[2] / "configs"


def files(*suffixes):
    found = sorted(file for file in CONFIGS.rglob("*") if file.suffix in suffixes)
    return pytest.mark.parametrize(
        "file", found, ids=[str(file.relative_to(CONFIGS)) for file in found]
    )


def command_of(file: Path) -> type:
    """Files are in directories named for the method; the demo's for the run, with it in their names."""
    words = re.split(r"[^a-z0-9]+", str(file.relative_to(CONFIGS)).lower())
    return next((OFFLINE[word] for word in words if word in OFFLINE), RLConfig)


@files(".yaml", ".yml")
def test_a_configuration_is_sound_in_itself(file):
    config = loader.load(command_of(file), file)
    check_ranges(config)
    check_input_text(config.data)
    if isinstance(config, RLConfig):
        check_rollout_batch(config)


@files(".py")
def test_a_reward_or_an_agent_is_callable(file):
    of_agents = load_program if file.stem.endswith("_program") else load_agent
    load = of_agents if "agents" in file.parts else load_reward_function
    load(str(file))
