"""Texts with labels: what is read, how labels are named, and what a batch holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from weft.data.classification import (
    ClassCollator,
    ClassColumns,
    ClassDataset,
    encoded_texts,
    learned_names,
    read_labeled,
)
from weft.errors import DataError
from weft.tasks.tiny.tokens import byte_tokenizer


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bert_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer("<s> $A </s>", "<s> $A </s> $B:1 </s>:1")


def load(path: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> ClassDataset:
    rows = read_labeled(path, ClassColumns())
    return encoded_texts(path, rows, learned_names(path, rows), tokenizer, **options)


def test_labels_are_text_or_whole_numbers_in_sorted_order(tmp_path: Path) -> None:
    def names(*labels: Any) -> tuple[str, ...]:
        path = write(tmp_path / "rows.jsonl", [{"sentence": "a", "label": label} for label in labels])
        return learned_names(path, read_labeled(path, ClassColumns()))

    assert names("no", "yes", "maybe", "no") == ("maybe", "no", "yes")
    assert names(10, 2, -1, 2.0) == ("-1", "2", "10")
    assert names(True, False) == ("False", "True")
    assert names(" b", "a ") == ("a", "b")
    with pytest.raises(DataError, match=r"rows\.jsonl line 2: expected a label .* a whole number; found 0\.5"):
        names(1, 0.5)
    with pytest.raises(DataError, match=r"line 1: expected a label in the column 'label'.* found ''"):
        names("", "a")
    with pytest.raises(DataError, match="every row has the label 'a'"):
        names("a", "a")


def test_a_csv_and_json_numbers_are_the_same_labels(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,1\nb,0\n")
    lines = write(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    for path in (tmp_path / "rows.csv", lines):
        assert [row.label for row in read_labeled(path, ClassColumns())] == ["1", "0"]


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "lable": 1}])
    with pytest.raises(DataError, match="no column 'label'; did you mean 'lable'"):
        read_labeled(path, ClassColumns())
    with pytest.raises(DataError, match="no column 'question'"):
        read_labeled(path, ClassColumns(text="question"))
    with pytest.raises(DataError, match="is empty"):
        read_labeled(write(tmp_path / "none.jsonl", []), ClassColumns())


def test_a_label_that_training_has_not_names_the_row(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "eval.jsonl", [{"text": "a", "label": "good"}, {"text": "b", "label": "goood"}])
    with pytest.raises(DataError, match=r"eval\.jsonl line 2: the label 'goood' .*did you mean 'good'.*'bad', 'good'"):
        encoded_texts(path, read_labeled(path, ClassColumns()), ("bad", "good"), bert_tokenizer)


def test_a_pair_has_its_types_and_a_batch_is_padded_on_the_right(
    tmp_path: Path, bert_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        [{"text": "ab", "other": "c", "label": "no"}, {"text": "d", "other": "e", "label": "yes"}],
    )
    rows = read_labeled(path, ClassColumns(pair="other"))
    data = encoded_texts(path, rows, ("no", "yes"), bert_tokenizer, pair_types=True)
    assert str(data.examples[0].text) == "ab\nc"
    batch = ClassCollator(0)([data[0], data[1]])
    assert bert_tokenizer.batch_decode(batch["input_ids"]) == ["<s>ab</s>c</s>", "<s>d</s>e</s><pad>"]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["labels"].tolist() == [0, 1]
    assert "token_type_ids" not in encoded_texts(path, rows, ("no", "yes"), bert_tokenizer)[0]


def test_long_rows(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "abcdef", "label": "x"}, {"text": "ab", "label": "y"}])
    data = load(path, bert_tokenizer, max_length=5)
    assert bert_tokenizer.decode(data.examples[0].input_ids) == "<s>abc</s>"
    assert data.report.truncated == 1
    assert str(data.report) == "2 rows, 9 tokens, 2 labels: x 1, y 1; 1 rows truncated"
    assert load(path, bert_tokenizer, max_length=5, long_rows="drop").report.labels == {"x": 0, "y": 1}
    with pytest.raises(DataError, match=r"line 1: 8 tokens, and max_length is 5"):
        load(path, bert_tokenizer, max_length=5, long_rows="error")
    with pytest.raises(DataError, match="all 2 rows are longer"):
        load(path, bert_tokenizer, max_length=3, long_rows="drop")


def test_rows_with_the_same_text_stay_on_one_side(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": f"t{i % 5}", "label": i % 2} for i in range(20)])
    rest, held = load(path, bert_tokenizer).split(0.4, seed=1)
    assert (len(rest), len(held)) == (12, 8)
    assert not {each.text.key for each in rest.examples} & {each.text.key for each in held.examples}
