import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from weft.data.rows import read_rows
from weft.errors import DataError

ROWS = [{"prompt": "a", "completion": "1"}, {"prompt": "b,c", "completion": "007"}]


def values(source: Path, split: str = "train") -> list[dict[str, str]]:
    return [dict(row.values) for row in read_rows(source, split)]


def test_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "1"}\n\n{"prompt": "b,c", "completion": "007"}\n')
    (tmp_path / "d.csv").write_text('prompt,completion\na,1\n"b,c",007\n')
    (tmp_path / "d.tsv").write_text("prompt\tcompletion\na\t1\nb,c\t007\n")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "d.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    assert values(tmp_path / "d.jsonl") == ROWS
    (tmp_path / "d.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "lines.json").write_text((tmp_path / "d.jsonl").read_text())
    assert values(tmp_path / "d.csv") == ROWS
    assert values(tmp_path / "d.tsv") == ROWS
    assert values(tmp_path / "d.json") == ROWS
    assert values(tmp_path / "lines.json") == ROWS
    assert values(tmp_path / "d.parquet") == ROWS
    assert values(tmp_path / "saved") == ROWS
    assert values(tmp_path / "splits", "test") == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", '{"a": 1}\n\n{"a": \n', "d.jsonl line 3: expected a JSON object"),
        ("d.jsonl", '{"a": 1}\n[1]\n', "d.jsonl line 2: expected a JSON object, found '\\[1\\]'"),
        ("d.json", '[{"a": 1}, 7]', "d.json row 2: expected a JSON object, found '7'"),
        ("d.json", '[{"a": 1},', "d.json: cannot be read as JSON"),
        ("d.csv", "a,b\n1,2\n1,2,3\n", "d.csv line 3: more values than the header has columns"),
        ("d.tsv", "a\tb\n1\t2\n1\t2\t3\n", "d.tsv line 3: more values than the header has columns; take tabs out"),
        ("d.txt", "hello", "expected a file that ends in .jsonl, .json, .csv, .tsv, .parquet, found '.txt'"),
        ("d.parquet", "hello", "d.parquet: cannot be read as Parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_quotes_in_a_tsv_file_are_text(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('path\tsentence\n1.mp3\t"Well," she said\n2.mp3\tthe 5" nail\n')
    assert [row["sentence"] for row in values(tmp_path / "d.tsv")] == ['"Well," she said', 'the 5" nail']


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"d.jsonl line 1: expected UTF-8"):
        list(read_rows(tmp_path / "d.jsonl"))


def test_a_missing_file_and_a_missing_split_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data file or folder .*none.jsonl"):
        read_rows(tmp_path / "none.jsonl")
    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"no split 'train' \(there are: test\)"):
        read_rows(tmp_path / "splits", "train")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="expected a folder that `datasets` saved"):
        read_rows(tmp_path / "folder")
