import json
import math

import pytest

from megarlhf.rewards.protocol import BadRequest, read_request, write_request
from megarlhf.rewards.scorer import Batch, CallFailed


def test_round_trip():
    batch = Batch(["é\ud800", ""], ["p", "q"], [{"a": [1, None]}, "x"])
    assert read_request(write_request(batch), 2) == batch


def test_older_clients_send_only_queries():
    assert read_request(b'{"query": ["a"]}', 1) == Batch(["a"], [""], [None])


@pytest.mark.parametrize("label", [math.nan, object(), {1}])
def test_labels_that_are_not_json(label):
    with pytest.raises(CallFailed, match="label"):
        write_request(Batch(["a"], ["b"], [label]))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xff", "not JSON"),
        (b"{", "not JSON"),
        ([], "not a JSON object"),
        ({}, "'query' is not a list of texts"),
        ({"query": "a"}, "'query' is not a list of texts"),
        ({"query": [1]}, "'query' is not a list of texts"),
        ({"query": []}, "'query' is empty"),
        ({"query": ["a"] * 4}, "4 responses are more than the limit of 3"),
        ({"query": ["a"], "prompts": [None]}, "'prompts' is not a list of texts"),
        ({"query": ["a"], "prompts": []}, "0 'prompts' for 1 'query'"),
        ({"query": ["a"], "labels": {}}, "'labels' is not a list"),
        ({"query": ["a"], "labels": [1, 2]}, "2 'labels' for 1 'query'"),
    ],
)
def test_bad_requests(body, said):
    with pytest.raises(BadRequest, match=said):
        read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), 3)
