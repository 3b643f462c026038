"""An agent, or rewards: one of them, and one agent."""

from dataclasses import replace

import pytest

from megarlhf.config.agent_checks import check_scoring
from megarlhf.config.schema import AgentConfig, RewardConfig, RLConfig
from megarlhf.errors import UserError

HERE = __file__


@pytest.mark.parametrize(
    "agent",
    [AgentConfig(file=HERE), AgentConfig(program=HERE), AgentConfig(command="sh -c 'exit 0'")],
)
def test_each_by_itself(agent):
    check_scoring(replace(RLConfig(), agent=agent))


@pytest.mark.parametrize(
    ("agent", "reward", "said"),
    [
        ({}, {}, "nothing scores the responses"),
        ({"file": HERE, "command": "sh"}, {}, "agent.file and agent.command exclude"),
        ({"file": HERE}, {"urls": ("http://a/b",)}, "reward.urls and agent.file exclude"),
        ({"file": "/no/such.py"}, {}, "agent.file: no such file"),
        ({"program": "/no/such.py"}, {}, "agent.program: no such file"),
        ({"command": "no-such-command x"}, {}, "there is no no-such-command"),
        ({"file": HERE, "observation_template": "x"}, {}, "holds 0 times {}"),
        ({"program": HERE, "observation_template": "{}"}, {}, "programs have no observations"),
        ({"command": ""}, {}, "it is empty"),
        ({"command": "sh 'x"}, {}, "No closing quotation"),
    ],
)
def test_what_does_not_go_together(agent, reward, said):
    config = replace(RLConfig(), agent=AgentConfig(**agent), reward=RewardConfig(**reward))
    with pytest.raises(UserError) as caught:
        check_scoring(config)
    assert said in str(caught.value)
