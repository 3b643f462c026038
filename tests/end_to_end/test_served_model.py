"""``megarlhf serve-rm --model``: a reward model on two ranks, behind HTTP."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import torch

TEXTS = ["what is one plus two? three", "four", "what is it?<eos>"]


def test_scores_are_those_of_hugging_face(reward_model):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    settings = ["reward.parallel.tensor=2", "cluster.reward_ranks=2", "model.dtype=float32"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "megarlhf", "serve-rm", "--port=0"),
            f"--model={reward_model}",
            *settings,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith(f"serving {reward_model} at http://127.0.0.1:"), (
            process.stderr.read()
        )
        url = line.split()[-1]
        texts = [text.replace("<eos>", tokenizer.eos_token) for text in TEXTS]
        status, answer = request(url, {"query": texts})
        assert status == 200
        for text, reward in zip(texts, answer["rewards"], strict=True):
            ids = tokenizer(text.removesuffix(tokenizer.eos_token))["input_ids"]
            ids = torch.tensor([[*ids, tokenizer.eos_token_id]])
            with torch.no_grad():
                expected = model.score(model.model(ids).last_hidden_state)[0, -1, 0].item()
            assert reward == pytest.approx(expected, abs=1e-5)
        status, answer = request(url, {"query": ["four", ""]})
        assert (status, answer["index"]) == (422, 1)
        assert "no tokens" in answer["error"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_a_language_model_is_refused(model_dir, run_cli):
    command = [sys.executable, "-m", "megarlhf", "serve-rm", f"--model={model_dir}"]
    assert "scores nothing" in run_cli(command, status=2)


def request(url: str, body: dict) -> tuple[int, dict]:
    """Status and answer."""
    try:
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
