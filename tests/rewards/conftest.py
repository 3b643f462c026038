"""Samples, reward files and sources; servers are on loopback."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megarlhf.config.schema import RewardConfig
from megarlhf.data.records import Prompt, Sample
from megarlhf.rewards import remote_scorer
from megarlhf.rewards.sources import rewards_of


def samples_of(*texts):
    """Samples with the prompts p0:, p1:, ... and the labels 0, 1, ..."""
    return [
        Sample(Prompt(i, f"p{i}:", (1,), label=i), [2], [-1.0], 0, "stop", text)
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def write(tmp_path):
    def write(text, name="reward.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def score(monkeypatch):
    """Scores texts with the sources of a configuration; returns the samples and the metrics."""
    monkeypatch.setattr(remote_scorer, "FIRST_PAUSE_S", 0.01)

    def score(texts, **settings):
        rewards = rewards_of(RewardConfig(**settings))
        rewards.check()
        samples = samples_of(*texts)
        with rewards:
            metrics = rewards.score(samples).metrics()
        return samples, metrics

    return score


def rewards_in(samples):
    return [sample.reward for sample in samples]


class Server:
    """A reward server on loopback that answers as a test says.

    Args:
        respond: From the number of the request and its body (parsed) to a status and a body.
    """

    def __init__(self, respond):
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                status, answer = respond(len(server.requests) - 1, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client did not wait
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/get_reward"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server():
    started = []

    def start(respond):
        started.append(Server(respond))
        return started[-1]

    yield start
    for one in started:
        one.close()
