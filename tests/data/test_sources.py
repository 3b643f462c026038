import pytest

from megarlhf.data.sources import Selection, read_rows
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
        (b'{"q": "\\ud83d\\ude00"}\n{"q": "a\\ud83d"}\n', ":2", "half of a character, \\ud83d"),
        (b'[{"q": 1}, {"q": ["\\uDE00"]}]', ", row 2", "half of a character, \\ude00"),
        (b'{"q": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", ":1", "recursion"),
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


def test_parquet_and_arrow_files_and_directories(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"q": number, "messages": [{"role": "user", "content": "x"}]} for number in range(5)]
    table = pyarrow.Table.from_pylist(rows)
    (tmp_path / "p").mkdir()
    (tmp_path / "a").mkdir()
    for number, name in enumerate(("b", "a")):
        part = table.slice(0, 2) if number else table.slice(2)
        pyarrow.parquet.write_table(part, tmp_path / "p" / f"{name}.parquet")
    with pyarrow.ipc.new_file(tmp_path / "a" / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pyarrow.ipc.new_stream(tmp_path / "a" / "stream.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert [row.values for row in read_rows(f"parquet@{tmp_path}/p", required_keys=["q"])] == rows
    both = read_rows(f"arrow@{tmp_path}/a", required_keys=["q"])
    assert [row.values for row in both] == rows + rows
    assert both[-1].where == f"{tmp_path}/a/stream.arrow, row 5"
    (by_suffix,) = read_rows(f"{tmp_path}/a/file.arrow", required_keys=["q"], max_samples=1)
    assert by_suffix.values == rows[0]
    with pytest.raises(UserError, match="no key 'p'"):
        read_rows(f"parquet@{tmp_path}/p", required_keys=["p"])


def test_files_that_are_not_what_they_are_called(tmp_path):
    for kind in ("parquet", "arrow"):
        file = tmp_path / f"rows.{kind}"
        file.write_text("not at all")
        with pytest.raises(UserError, match=f"does not read as {kind.capitalize()}") as caught:
            read_rows(str(file), required_keys=[])
        assert caught.value.where == str(file)


def test_splits_of_a_directory(tmp_path):
    for name in ("train-00000", "train-00001", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"q": "{name}"}}\n')
    spec = f"json@{tmp_path}"
    for split in ("train", None):  # unasked, nobody trains on what is called test
        train = [row.values["q"] for row in Selection(spec, split)]
        assert train == ["train-00000", "train-00001"]
    with pytest.raises(UserError, match=r"no .* file of the split 'dev'"):
        list(Selection(spec, "dev"))
    with pytest.raises(UserError, match="one file has no split 'test'"):
        list(Selection(f"{spec}/test.jsonl", "test"))
    (tmp_path / "parts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "parts" / f"{name}.jsonl").write_text('{"q": 1}\n')
    assert len(list(Selection(f"json@{tmp_path}/parts"))) == 2


def test_rows_without_splits_have_none(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"q": 1}]).save_to_disk(tmp_path / "saved")
    assert len(list(Selection(str(tmp_path / "saved")))) == 1
    with pytest.raises(UserError, match="it has no splits, so none called dev"):
        list(Selection(str(tmp_path / "saved"), "dev"))


def test_splits_and_configurations_of_a_name(monkeypatch):
    import datasets

    asked = []

    def load(*names):
        asked.append(names)
        parts = {name: datasets.Dataset.from_list([{"q": name}]) for name in ("train", "test")}
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row.values["q"] for row in Selection("owner/name:main", "test")] == ["test"]
    assert [row.values["q"] for row in Selection("owner/name")] == ["train"]
    assert asked == [("owner/name", "main"), ("owner/name",)]
    with pytest.raises(UserError, match="no split called dev; it has train, test"):
        list(Selection("owner/name", "dev"))


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


def test_gsm8k(shared_data):
    rows = read(shared_data / "gsm8k_test.jsonl", ["question", "answer"])
    assert len(rows) == 1319
    assert rows[-1].where.endswith("gsm8k_test.jsonl:1319")
    assert all("####" in row.values["answer"] for row in rows)
