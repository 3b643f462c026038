"""Agents on the real stack: Megatron ranks, a vLLM engine, environments and programs in processes."""

import json

import pytest

from megarlhf.report.metrics import MetricsLog
from tests.end_to_end.conftest import TP2, figures, under_torchrun

# Measured 1e-7 to 4e-7 in fp32, as without an agent.
LOGPROB_GAP = 2e-6

# The reward of the other runs, from an agent of one turn.
SHORT = """
class Agent:
    def step(self, action):
        return {"reward": 1.0 / (1 + len(action.text)), "done": True}
"""


def test_an_agent_of_one_turn_is_a_reward_function(tmp_path, rl_command, run_cli, whole_run):
    """The same metrics, to the bit."""
    agent, out = tmp_path / "agent.py", tmp_path / "run"
    agent.write_text(SHORT)
    settings = (*TP2, "reward.function=null", f"agent.file={agent}", "train.steps=2")
    run_cli(rl_command(out, *settings))
    expected, found = figures(whole_run)[:3], figures(out)[:3]
    assert [row["step"] for row in expected] == [0, 1, 2]
    for before, now in zip(expected, found, strict=True):
        assert {key: now.get(key) for key in before if key != "reward_from_function"} == {
            key: value for key, value in before.items() if key != "reward_from_function"
        }
    assert found[1]["agent_turns"] == 1


# A sum in two turns: it answers, is told how long that was, and answers again.
TWO_TURNS = """
class Agent:
    async def reset(self, prompt, label):
        if label == "seven": raise LookupError("no game for seven")
        self.label, self.first = label, None
        return prompt
    async def step(self, action):
        if self.first is None:
            self.first = action.text
            return {"observation": f"{self.label}, not {self.first}", "done": False}
        return {"reward": 1.0 / (1 + len(action.text)), "done": True}
"""


def test_two_turns_agree_with_the_actor_and_failures_are_dropped(tmp_path, rl_command, run_cli):
    """Under torchrun, where all is colocated and no Ray."""
    agent, out = tmp_path / "agent.py", tmp_path / "run"
    agent.write_text(TWO_TURNS)
    settings = (
        "reward.function=null",
        f"agent.file={agent}",
        "agent.max_turn_tokens=6",
        "agent.observation_template=<|user|>{}<|assistant|>",
        "agent.on_failure=drop",
        "agent.retries=0",
        "rollout.max_new_tokens=96",
        "train.micro_batch_tokens=1024",
        "train.steps=2",
    )
    run_cli(under_torchrun(rl_command(out, *settings), 2))
    steps = [row for row in MetricsLog.read(out) if "logprob_gap" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["logprob_gap"] < LOGPROB_GAP  # of every sampled token, observations before it
        assert 1 < row["agent_turns"] <= 2
        assert row["agent_done"] + row["agent_out_of_tokens"] == 1
        assert row["response_length"] <= 12
        assert row["reward_from_agent"] == pytest.approx(row["reward"])
    assert sum(row["reward_dropped"] for row in steps) % 4 == 0
    answers = [json.loads(line) for line in (out / "evaluation.jsonl").read_text().splitlines()]
    assert {row["label"] for row in answers if row["reward"] is None} == {"seven"}


PROGRAM = """
from openai import AsyncOpenAI
async def run(prompt, label, base_url, api_key):
    async with AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        messages = [{"role": "user", "content": prompt}]
        for again in ("and", "or", "but"):
            answer = await client.chat.completions.create(
                model="policy", messages=messages, max_tokens=4
            )
            said = answer.choices[0].message.content
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": again}]
            if again == "or" and label == "two":
                messages = messages[2:]  # a history that begins later
        return 1.0 / (1 + len(said))
"""


def test_a_program_behind_the_endpoint(tmp_path, rl_command, run_cli):
    program, out = tmp_path / "program.py", tmp_path / "run"
    program.write_text(PROGRAM)
    settings = (
        *("reward.function=null", f"agent.program={program}"),
        *("data.apply_chat_template=false", "data.eval_prompts=null"),
        *("rollout.max_new_tokens=64", "train.micro_batch_tokens=1024", "train.steps=2"),
        *(*TP2, "model.parallel.tensor=1"),  # two replicas: the sequences have to be dealt
    )
    run_cli(rl_command(out, *settings))
    steps = [row for row in MetricsLog.read(out) if "logprob_gap" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["logprob_gap"] < LOGPROB_GAP
        assert row["agent_turns"] == 3
        assert 1 <= row["agent_sequences"] < 2
        assert 3 <= row["response_length"] <= 12
