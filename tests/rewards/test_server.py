import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from megarlhf.cli import main
from tests.rewards.conftest import rewards_in

FUNCTION = """
def reward_func(queries, prompts, labels):
    if "bad" in "".join(queries): raise ValueError("bad")
    return {"rewards": [float(len(q)) for q in queries], "extra_logs": {"label": labels}}
"""


def serve(file, *options):
    command = [sys.executable, "-m", "megarlhf", "serve-rm", "--port", "0", f"--function={file}"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    file = tmp_path_factory.mktemp("served") / "reward.py"
    file.write_text(FUNCTION)
    process = serve(file, "--max-batch=3")
    line = process.stdout.readline()
    assert line.startswith(f"serving {file} at http://127.0.0.1:"), line + process.stderr.read()
    yield line.split()[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def request(url, body=None):
    """Status and parsed body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_answers(url):
    body = {"query": ["a", "bc"], "prompts": ["", ""], "labels": [1, 2]}
    assert request(url, json.dumps(body).encode()) == (
        200,
        {"rewards": [1.0, 2.0], "scores": [1.0, 2.0], "extra_logs": {"label": [1.0, 2.0]}},
    )


def test_health(url):
    assert request(url.replace("/get_reward", "/health")) == (200, {"status": "ok"})


def test_bad_requests_say_why(url):
    status, answer = request(url, b"{}")
    assert (status, answer) == (400, {"error": "'query' is not a list of texts"})
    status, answer = request(url, json.dumps({"query": ["a"] * 4}).encode())
    assert (status, answer) == (400, {"error": "4 responses are more than the limit of 3"})


def test_a_response_that_fails_is_named(url):
    body = {"query": ["a", "p:bad"], "prompts": ["", "p:"], "labels": [1, 2]}
    status, answer = request(url, json.dumps(body).encode())
    assert (status, answer["index"]) == (422, 1)
    assert "ValueError('bad')" in answer["error"]
    assert "for the prompt 'p:' and the response 'bad'" in answer["error"]


def test_a_run_against_it(url, score):
    # 4 in a request are too many for the server, so each is sent by itself
    samples, metrics = score(
        ["a", "bad", "bc", "d"] * 2, urls=(url,), batch_size=4, on_failure="drop", retries=0
    )
    assert rewards_in(samples) == [4.0, None, 5.0, 4.0] * 2
    assert metrics["reward_dropped"] == 2
    assert metrics["extra_remote_label"] == pytest.approx(22 / 6)


def test_a_file_that_does_not_load(write):
    process = serve(write("def reward(q, p, l): ...\n"))
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert "the file defines no reward_func" in errors
    assert "Traceback" not in errors


def test_a_port_that_is_taken(url, write):
    process = serve(write(FUNCTION), "--port", url.split(":")[2].split("/")[0])
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "cannot listen there" in errors
    assert "Traceback" not in errors


def test_a_port_that_is_none(write, capsys):
    assert main(["serve-rm", f"--function={write(FUNCTION)}", "--port=99999", "--workers=1"]) == 2
    assert "127.0.0.1:99999: cannot listen there" in capsys.readouterr().err
