"""Rules about agents: ``agent.*``."""

import shlex
import shutil
from pathlib import Path

from megarlhf.config.reward_checks import check_reward
from megarlhf.config.schema import RewardConfig, RLConfig
from megarlhf.errors import UserError


def check_scoring(config: RLConfig) -> None:
    """Something scores the responses: an agent, or what ``reward.*`` says.

    Raises:
        UserError: Nothing does, or both would, or it cannot be what it says.
    """
    agent, reward = config.agent, config.reward
    if not agent.is_set:
        check_reward(reward)
        return
    kinds = {"file": agent.file, "program": agent.program, "command": agent.command}
    given = [f"agent.{name}" for name, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other", fix="keep one of them")
    _check_no_reward(reward, given[0])
    for name in ("file", "program"):
        path = kinds[name]
        if path is not None and not Path(path).is_file():
            raise UserError(
                f"no such file: {path}", where=f"agent.{name}", fix="give the path of a .py file"
            )
    if agent.command is not None:
        _check_command(agent.command)
    template = agent.observation_template
    if template is not None and (template.count("{}") != 1 or agent.file is None):
        raise UserError(
            f"{template!r} holds {template.count('{}')} times {{}}"
            if agent.file is not None
            else "programs have no observations: their messages get the chat template",
            where="agent.observation_template",
            fix="write {} exactly once, where the observation goes, or leave it out",
        )


def _check_no_reward(reward: RewardConfig, agent: str) -> None:
    for name in ("function", "models", "urls"):
        if getattr(reward, name):
            raise UserError(
                f"reward.{name} and {agent} exclude each other: an agent gives the rewards",
                fix=f"remove reward.{name} and let the agent ask it, or remove {agent}",
            )


def _check_command(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:  # an open quotation mark
        reason = str(error)
    else:
        if words and shutil.which(words[0]):
            return
        reason = f"there is no {words[0]}" if words else "it is empty"
    raise UserError(
        f"{command!r} is no command: {reason}",
        where="agent.command",
        fix="write it as in a shell: 'python my_agent.py --option'",
    )
