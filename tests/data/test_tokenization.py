"""Storing, caching, spreading over processes, reading back, and going on after a restart."""

import dataclasses
import json
import logging

import pyarrow
import pytest

from megarlhf.config.schema import StepDataConfig, SupervisedDataConfig
from megarlhf.data import tokenization
from megarlhf.data.dealing import partition
from megarlhf.data.record_batches import read_example, record_batch
from megarlhf.data.records import Example, Sequence
from megarlhf.data.steps import load_steps
from megarlhf.data.stream import ShuffledStream, _token_hash
from megarlhf.data.supervised import load_supervised
from megarlhf.errors import UserError
from tests.data.rows import FirstSequences

ROWS = [{"input": f"{n}+1=", "output": str(n + 1)} for n in range(25)]


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(tokenization, "PIECE", 4)


def load(spec, tokenizer, **settings):
    rows = load_supervised(SupervisedDataConfig(train=spec, **settings), tokenizer)
    return FirstSequences(rows)


def test_what_is_stored_is_read_back():
    examples = [
        Example(
            [
                Sequence([1, 2, 3], [0.0, 1.0, 1.0], {"labels": [0.0, 0.25, 1.0]}),
                Sequence([1, 5], [0.0, 1.0], {"labels": [0.5, 0.0]}),
            ],
            prompt_tokens=1,
            values={"margin": 0.1},
        ),
        Example([Sequence([2**31 - 1], [1.0], {"labels": [0.0]})], 0, {"margin": -3.0}),
    ]
    batch = record_batch(examples)
    assert [read_example(batch, number) for number in range(2)] == examples


def test_pieces_do_not_show(write_rows, tokenizer, monkeypatch):
    spec = write_rows(ROWS)
    whole = load(spec, tokenizer)
    monkeypatch.setattr(tokenization, "PIECE", 4)
    pieces = load(spec, tokenizer)
    assert list(pieces) == list(whole)
    assert pieces.token_hash == whole.token_hash == _token_hash(list(whole))
    assert (len(pieces), pieces[-1], pieces[3:5]) == (25, whole[24], [whole[3], whole[4]])
    assert pieces.highest_token == max(max(row.token_ids) for row in whole)
    with pytest.raises(IndexError):
        pieces[25]


def test_the_hash_knows_the_labels(write_rows, tokenizer):
    def hash_of(label):
        row = {"prompt": "q", "completions": ["a"], "labels": [label]}
        return load_steps(StepDataConfig(train=write_rows([row])), tokenizer).token_hash

    assert hash_of(0.5) == hash_of(0.5) != hash_of(0.75)


def test_processes_do_not_show(write_rows, tokenizer, small_pieces):
    spec = write_rows([*ROWS, {"input": "x" * 50, "output": "y"}])
    settings = {"max_tokens": 40, "overlong_rows": "drop"}
    alone, spread = (load(spec, tokenizer, workers=n, **settings) for n in (1, 2))
    assert list(spread) == list(alone)
    assert spread.report == alone.report
    bad = write_rows([*ROWS, {"input": "x"}])
    with pytest.raises(UserError, match="no key 'output'") as caught:
        load(bad, tokenizer, workers=2)
    assert caught.value.where.endswith("rows.jsonl:26")


def test_a_cache_is_filled_once_and_read_from_disk(write_rows, tokenizer, tmp_path, monkeypatch):
    spec, cache = write_rows(ROWS), tmp_path / "cache"
    settings = {"cache_dir": str(cache), "max_tokens": 10}
    first = load(spec, tokenizer, **settings)
    monkeypatch.setattr(tokenization.PieceMaker, "__call__", lambda *_: pytest.fail("again"))
    before = pyarrow.total_allocated_bytes()
    second = load(spec, tokenizer, **settings)
    assert list(second) == list(first)
    assert (second.report, second.token_hash) == (first.report, first.token_hash)
    assert pyarrow.total_allocated_bytes() <= before  # mapped, not read
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 1


def test_what_changes_the_tokens_is_in_the_caches_names(write_rows, make_tokenizer, tmp_path):
    cache, spec = tmp_path / "cache", write_rows(ROWS)

    def entries(tokenizer=None, **settings):
        load(spec, tokenizer or make_tokenizer(), cache_dir=str(cache), **settings)
        return len([entry for entry in cache.iterdir() if entry.is_dir()])

    assert entries() == 1
    assert entries(input_template="Q {}") == 2
    assert entries(max_tokens=100) == 3
    assert entries(max_samples=3) == 4
    assert entries(tokenizer=make_tokenizer(bos=True)) == 5
    assert entries(shuffle=False, workers=1) == 5
    write_rows(ROWS[:-1])
    assert entries() == 6


def test_an_interrupted_cache_leaves_nothing_behind(write_rows, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    spec = write_rows([*ROWS, {"input": "x"}])
    with pytest.raises(UserError, match="no key 'output'"):
        load(spec, tokenizer, cache_dir=str(cache))
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cache of tokenized rows cannot be written"):
        load(write_rows(ROWS), tokenizer, cache_dir=str(tmp_path / "file"))


def test_the_report_names_and_counts(write_rows, tokenizer, caplog, small_pieces):
    long = {"input": "12345678", "output": "12345678"}
    spec = write_rows([*ROWS, long, long])
    with caplog.at_level(logging.WARNING, logger="megarlhf"):
        rows = load(spec, tokenizer, max_tokens=12, overlong_rows="truncate_right")
    report = rows.report
    assert (report.rows, report.kept, report.dropped) == (27, 27, {})
    assert report.lines() == [
        f"27 of 27 rows, {sum(len(row.token_ids) for row in rows)} tokens, "
        f"{sum(int(sum(row.loss_mask)) for row in rows)} of them trained on",
        "cut 2 of 27 rows: cut on the right to data.max_tokens=12 "
        f"(first: {spec.removeprefix('json@')}:26)",
    ]
    assert report.lines()[1] in caplog.text
    assert tokenizer.decode(rows[-1].token_ids) == "123456781234"
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_an_error_counts_all_rows_that_are_too_long(write_rows, tokenizer, small_pieces):
    long = {"input": "12345678", "output": "1"}
    with pytest.raises(UserError) as caught:
        load(write_rows([*ROWS, long, *ROWS, long]), tokenizer, max_tokens=9)
    assert "10 tokens are more than data.max_tokens=9 (2 of 52 rows" in caught.value.what
    assert caught.value.where.endswith("rows.jsonl:26")
    assert "data.overlong_rows=drop" in caught.value.fix


def test_no_rows(write_rows, tokenizer):
    with pytest.raises(UserError, match="there are no rows"):
        load(write_rows([]), tokenizer)


def test_held_out_rows(write_rows, tokenizer, tmp_path):
    write_rows(ROWS[:3], "train.jsonl")
    write_rows(ROWS[3:5], "test.jsonl")
    config = SupervisedDataConfig(train=f"json@{tmp_path}", split="train", eval_split="test")
    assert len(load_supervised(config, tokenizer)) == 3
    assert len(load_supervised(config, tokenizer, held_out=True)) == 2
    other = dataclasses.replace(config, eval=f"json@{tmp_path}/train.jsonl", eval_split=None)
    assert len(load_supervised(other, tokenizer, held_out=True)) == 3
    neither = dataclasses.replace(config, eval_split=None)
    with pytest.raises(UserError, match="no rows to evaluate on"):
        load_supervised(neither, tokenizer, held_out=True)


def dealt(stream, batches, ranks):
    """What each data-parallel rank is given of global batches of 8, as inputs of the rows."""
    given = []
    for _ in range(batches):
        batch = stream.next_batch(8)
        lengths = [len(sequence.token_ids) for sequence in batch]
        plan = partition(lengths, dp_size=ranks, max_tokens=16)
        assert sorted(i for rank in plan for micro in rank for i in micro) == list(range(8))
        given.append([tuple(sequence.token_ids) for sequence in batch])
    return given


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_resumed_run_on_other_ranks_sees_every_remaining_row_once(
    write_rows, tokenizer, ranks, small_pieces
):
    spec = write_rows([{"input": f"{n:03}", "output": "y"} for n in range(40)])
    whole = dealt(ShuffledStream(load(spec, tokenizer), seed=3), 10, 2)
    assert all(len({row for batch in whole[e : e + 5] for row in batch}) == 40 for e in (0, 5))
    interrupted = ShuffledStream(load(spec, tokenizer), seed=3)
    assert dealt(interrupted, 3, 2) == whole[:3]
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = ShuffledStream(load(spec, tokenizer), seed=3)
    resumed.load_state_dict(state)
    assert dealt(resumed, 7, ranks) == whole[3:]


def test_a_state_of_a_list_fits_the_stored_rows(write_rows, tokenizer):
    rows = load(write_rows(ROWS), tokenizer)
    listed, stored = ShuffledStream(list(rows), seed=1), ShuffledStream(rows, seed=1)
    assert listed.state_dict() == stored.state_dict()
