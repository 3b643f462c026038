import pytest

from megarlhf.data.sources import read_rows, short_enough
from megarlhf.errors import UserError


def read(path, keys=(), **kwargs):
    return read_rows(f"json@{path}", required_keys=keys, **kwargs)


def test_json_lines_keep_their_line_numbers(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": "a\u2028b"}\n\n  {"q": "ü"}\n', encoding="utf-8")
    rows = read(file, ["q"])
    assert [row.values for row in rows] == [{"q": "a\u2028b"}, {"q": "ü"}]
    assert [row.where for row in rows] == [f"{file}:1", f"{file}:3"]


@pytest.mark.parametrize("prefix", ["", "\n  ", "\ufeff"])
def test_a_list_and_lines_are_told_apart_by_content(tmp_path, prefix):
    file = tmp_path / "rows.jsonl"
    file.write_text(prefix + '[{"q": 1},\n {"q": 2}]', encoding="utf-8")
    rows = read(file)
    assert [row.values["q"] for row in rows] == [1, 2]
    assert rows[1].where == f"{file}, row 2"
    file.write_text(prefix + '{"q": 1}\n{"q": 2}', encoding="utf-8")
    assert [row.values["q"] for row in read(file)] == [1, 2]


def test_a_directory_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.json").write_text('[{"q": 2}]')
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n')
    (tmp_path / "notes.txt").write_text("not data")
    assert [row.values["q"] for row in read(tmp_path)] == [1, 2]


def test_max_samples_stops_before_later_trouble(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": 1}\n{"q": 2}\nnonsense\n')
    assert [row.values["q"] for row in read(file, max_samples=2)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        (b'{"q": 1}\n{"q": \n', ":2", "Expecting value"),
        (b'{"q": 1}\n{"q": "\xff"}\n', ":2", "utf-8"),
        (b'[{"q": 1},\n {"q" 2}]', ":2", "Expecting ':' delimiter"),
        (b'{"q": 1}\n7\n', ":2", "not int"),
        (b'[{"q": 1}, "x"]', ", row 2", "not str"),
        (b'{"q": 1}\n{"p": 1, "r": 1}\n', ":2", "no key 'q'; it has 'p', 'r'"),
        (b"{}\n", ":1", "no key 'q'; it has none"),
    ],
)
def test_a_bad_row_is_named(tmp_path, content, where, message):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(file, ["q"])
    assert caught.value.where == f"{file}{where}"
    assert message in caught.value.what


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_no_rows(tmp_path, content):
    file = tmp_path / "rows.json"
    file.write_text(content)
    with pytest.raises(UserError, match="no rows"):
        read(file)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match=r"holds no \.json"):
        read(tmp_path)


def test_datasets_reads_parquet_saved_and_named_data(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = datasets.Dataset.from_list([{"q": "one"}, {"q": "two"}])
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict(a=data, b=data).save_to_disk(tmp_path / "no_train")
    for name in ("rows.parquet", "saved", "splits"):
        spec = str(tmp_path / name)
        rows = read_rows(spec, required_keys=["q"])
        assert [row.values for row in rows] == [{"q": "one"}, {"q": "two"}]
        assert rows[1].where == f"{spec}, row 2"
    with pytest.raises(UserError, match="none is called train: a, b"):
        read_rows(str(tmp_path / "no_train"), required_keys=[])

    monkeypatch.setattr(datasets, "load_dataset", lambda name: {name: data})
    assert len(read_rows("owner/name", required_keys=["q"], max_samples=1)) == 1


def test_what_datasets_raises_becomes_a_user_error(tmp_path, monkeypatch):
    import datasets

    def refuse(name):
        raise RuntimeError("not\n today")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match="RuntimeError: not today") as caught:
        read_rows("owner/name", required_keys=[])
    assert "json@PATH" in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_rows(str(tmp_path / "missing.parquet"), required_keys=[])


def test_short_enough(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n{}\n{}\n")
    rows = read(file)
    keys = {"limit_key": "data.limit", "overlong_key": "data.overlong"}
    with caplog.at_level("WARNING", logger="megarlhf"):
        assert short_enough(rows, [3, 4, 5], limit=5, overlong="error", **keys) == [0, 1, 2]
        assert not caplog.records
        assert short_enough(rows, [3, 9, 5], limit=5, overlong="drop", **keys) == [0, 2]
    assert "dropped 1 of 3 rows" in caplog.text
    with pytest.raises(UserError) as caught:
        short_enough(rows, [3, 9, 8], limit=5, overlong="error", **keys)
    assert caught.value.where == f"{file}:2"
    assert "9 tokens are more than data.limit=5 (2 of 3 rows" in caught.value.what
    with pytest.raises(UserError, match="3 of 3 rows"):
        short_enough(rows, [6, 9, 8], limit=5, overlong="drop", **keys)


def test_gsm8k(shared_data):
    rows = read(shared_data / "gsm8k_test.jsonl", ["question", "answer"])
    assert len(rows) == 1319
    assert rows[-1].where.endswith("gsm8k_test.jsonl:1319")
    assert all("####" in row.values["answer"] for row in rows)
