"""Programs and commands that ask the endpoint, with OpenAI's own client."""

import sys
from dataclasses import replace

import pytest

from megarlhf.errors import UserError
from tests.agents.conftest import SAMPLING, STOP, Parrot

CHAT = """
from openai import AsyncOpenAI
async def run(prompt, label, base_url, api_key):
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    messages = [{"role": "user", "content": prompt}]
    for question in ("b", "c"):
        answer = await client.chat.completions.create(
            model="any", messages=messages, temperature=%s, logprobs=True
        )
        said = answer.choices[0].message.content
        assert [t.logprob for t in answer.choices[0].logprobs.content] == [-1.0, -2.0, -3.0]
        assert answer.usage.prompt_tokens + 3 == answer.usage.total_tokens
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": question}]
        %s
    return {"reward": len(messages), "score": 0.5, "extra_logs": {"label": len(label)}}
"""
ONE = replace(SAMPLING, samples=1)


def ids(text):
    return [ord(c) for c in text]


def test_a_conversation_is_one_sequence_of_the_very_tokens(write, play_program):
    done = play_program("a", program=write(CHAT % (1.0, "")), sampling=ONE)
    (sample,) = done.groups[0]
    assert sample.earlier == []
    assert list(sample.prompt.token_ids) == ids("U:aA:")
    assert sample.response_ids == [*ids("ok"), STOP, *ids("U:bA:"), *ids("ok"), STOP]
    assert sample.mask == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    assert (sample.reward, sample.score, sample.sampled) == (5.0, 0.5, 6)
    metrics = done.tally.metrics()
    assert (metrics["agent_turns"], metrics["agent_sequences"]) == (2, 1)
    assert metrics["agent_overridden"] == 0
    assert metrics["extra_agent_label"] == 7


def test_an_edited_history_is_a_sequence_of_its_own(write, play_program):
    edit = "messages[1] = {'role': 'assistant', 'content': 'no'}"
    done = play_program("a", program=write(CHAT % (0.5, edit)), sampling=ONE)
    (sample,) = done.groups[0]
    assert [list(part.prompt.token_ids) for part in sample.parts] == [
        ids("U:aA:"),
        ids("U:aA:no\0U:bA:"),
    ]
    assert [part.response_ids for part in sample.parts] == [[*ids("ok"), STOP]] * 2
    assert sample.sampled == 6
    metrics = done.tally.metrics()
    assert metrics["agent_sequences"] == 2
    assert metrics["agent_overridden"] == 2  # it wanted another temperature, and did not get it
    assert {asked[1].temperature for asked in done.asked} == {1.0}


def test_texts_and_ids_are_completed_too(write, play_program):
    file = write(
        "from openai import OpenAI\n"
        "def run(prompt, label, base_url, api_key):\n"
        "    client = OpenAI(base_url=base_url, api_key=api_key)\n"
        "    ask = client.completions.create\n"
        "    text = ask(model='m', prompt=prompt, max_tokens=2).choices[0]\n"
        "    assert (text.text, text.finish_reason) == ('ok', 'length')\n"
        "    ids = [0, ord(prompt), *map(ord, 'ok!')]\n"
        "    last = ask(model='m', prompt=ids, logprobs=0).choices[0]\n"
        "    assert last.logprobs.tokens == ['o', 'k', chr(0)]\n"
        "    return 1\n"
    )
    (sample,) = play_program("a", program=file, sampling=ONE).groups[0]
    assert sample.prompt.token_ids == (STOP, ord("a"))  # a text begins as the tokenizer says
    assert sample.response_ids == [*ids("ok!ok"), STOP]
    assert sample.mask == [1, 1, 0, 1, 1, 1]
    assert sample.finish_reason == "stop"


def test_a_stream_is_one_event(write, play_program):
    file = write(
        "from openai import OpenAI\n"
        "def run(prompt, label, base_url, api_key):\n"
        "    client = OpenAI(base_url=base_url, api_key=api_key)\n"
        "    messages = [{'role': 'user', 'content': prompt}]\n"
        "    ask = client.chat.completions.create\n"
        "    (chunk,) = ask(model='m', messages=messages, stream=True)\n"
        "    assert (chunk.choices[0].delta.content, chunk.choices[0].finish_reason) == ('ok', 'stop')\n"
        "    (chunk,) = client.completions.create(model='m', prompt=prompt, stream=True)\n"
        "    assert chunk.choices[0].text == 'ok'\n"
        "    return 1\n"
    )
    assert play_program("a", program=file, sampling=ONE).groups[0][0].sampled == 6


ASKS = """
import json, sys, urllib.error, urllib.request
def run(prompt, label, base_url, api_key):
    def ask(path, body, key=api_key):
        headers = {"Authorization": f"Bearer {key}"}
        body = None if body is None else json.dumps(body).encode()
        try:
            return urllib.request.urlopen(urllib.request.Request(base_url + path, body, headers))
        except urllib.error.HTTPError as error:
            return error
    def refused(status, said, **body):
        error = ask("/chat/completions", {"messages": [{"role": "user", "content": "a"}], **body})
        message = json.loads(error.read())["error"]["message"]
        assert error.status == status and said in message, (error.status, message)
    assert json.loads(ask("/models", None).read())["data"][0]["id"] == "policy"
    assert ask("/chat/completions", {"messages": []}, key="another").status == 401
    refused(400, 'stop=["."] is not offered', stop=["."])
    refused(400, 'tools=[{"type": "f', tools=[{"type": "function"}])
    refused(400, "no list of messages", messages=[])
    refused(400, "parts that are not text", messages=[{"role": "user", "content": [{"a": 1}]}])
    refused(400, "refuses the messages", messages=[{"role": "nobody", "content": "a"}])
    refused(400, "max_tokens=0", max_tokens=0)
    refused(400, "may have 100", messages=[{"role": "user", "content": "a" * 99}])
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts}], "stream": False, "n": 1}
    answer = ask("/chat/completions", body)
    assert json.loads(answer.read())["choices"][0]["message"]["content"] == "ok"
    refused(400, "agent.max_turns=1")
    return 2.0
"""


def test_requests_that_are_refused(write, play_program):
    done = play_program("a", program=write(ASKS), sampling=ONE, max_turns=1, retries=0)
    (sample,) = done.groups[0]
    assert list(sample.prompt.token_ids) == ids("U:abA:")
    assert sample.reward == 2.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def run(*_): return 1.0", "ended without an answer of the model"),
        ("def run(*_): raise ValueError('no')", "run raised ValueError('no') (agent.py:1)"),
        ("import time\ndef run(*_): time.sleep(9)", "run did not return within 0.5 s"),
        ("def run(*_): return 'one'", "run returned 'one', not a number"),
    ],
)
def test_programs_that_fail(write, play_program, text, said):
    with pytest.raises(UserError) as caught:
        play_program("a", program=write(text), retries=0, timeout_s=0.5)
    assert said in caught.value.what


COMMAND = """
import json, os, sys, urllib.request
asked = json.load(sys.stdin)
if asked["prompt"] == "bad": raise ValueError(asked["label"])
body = json.dumps({"prompt": asked["prompt"]}).encode()
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
url = os.environ["OPENAI_BASE_URL"] + "/completions"
answer = json.load(urllib.request.urlopen(urllib.request.Request(url, body, headers)))
print("the model said", answer["choices"][0]["text"])
print(json.dumps({"reward": len(asked["label"])}))
"""


def test_a_command(write, play_program):
    command = f"{sys.executable} {write(COMMAND)}"
    done = play_program("a", "bb", command=command, concurrency=2)
    assert [[one.reward for one in group] for group in done.groups] == [[7, 7], [8, 8]]
    with pytest.raises(UserError) as caught:
        play_program("bad", command=command, retries=0)
    assert "the command ended with exit status 1" in caught.value.what
    assert "ValueError: label bad" in caught.value.what
    with pytest.raises(UserError, match="last line is no reward: 'ok'"):
        play_program("a", command="echo ok", retries=0)
    with pytest.raises(UserError, match=r"did not end within 0.2 s"):
        play_program("a", command="sleep 50", retries=0, timeout_s=0.2)


def test_what_ends_the_engines_ends_the_run(write, play_program):
    """Whatever the program makes of its answer."""

    async def before(prompt):
        raise UserError("engine 0 was lost")

    with pytest.raises(UserError, match="engine 0 was lost"):
        play_program("a", program=write(CHAT % (1.0, "")), sampler=Parrot(before=before))


def test_a_proxy_is_not_asked(write, play_program, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "elsewhere")
    program = write(
        "import os, urllib.request\n"
        "assert os.environ['no_proxy'] == 'elsewhere,127.0.0.1'\n" + CHAT % (1.0, "")
    )
    assert play_program("a", program=program, sampling=ONE).groups[0][0].reward == 5
    command = f"{sys.executable} {write(COMMAND)}"
    assert play_program("a", command=command, sampling=ONE).groups[0][0].reward == 7
