"""``weft curve`` from the shell."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import weft

from .conftest import Made, Run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.jsonl"
    text = [{"prompt": f"the warp {i}", "completion": " is held" * (1 + i % 3)} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in text))
    return path


def test_the_table_and_the_document_say_the_same(llama: Made, rows: Path, run: Run, tmp_path: Path) -> None:
    words = ("curve", llama.adapter_path.parent, "--base", llama.base, "--data", rows)
    document = json.loads(run(*words, "--json", "--plot", tmp_path / "curve.svg").stdout)
    assert [point["rank"] for point in document["points"]] == [0, 1, 2, 4]
    assert document["order"] == "svd"
    assert "</svg>" in (tmp_path / "curve.svg").read_text()
    found = run("eval", *words[2:], "--adapter", llama.adapter_path, "--generate-rows", 0, "--json")
    assert [document["points"][0]["loss"], document["points"][-1]["loss"]] == [
        result["loss"] for result in json.loads(found.stdout)["results"]
    ]
    shown = run(*words).stdout
    for point in document["points"]:
        assert f"{point['loss']:.4f}" in shown
    assert "2,000 bootstrap resamples of the rows, seed 0" in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[1:6])


def test_the_smallest_rank_is_written(llama: Made, rows: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "small"
    words = ("curve", llama.adapter_path, "--base", llama.base, "--data", rows, "--ranks", "1,3", "--output", output)
    result = run(*words, "--tolerance", 0.99, "--json")
    document = json.loads(result.stdout)
    assert [point["rank"] for point in document["points"]] == [0, 1, 3, 4]
    if document["smallest"] is None:  # random factors: there need be no gain
        assert result.exit_code == 2
        assert "there may be no gain to keep" in result.stderr
        assert not output.exists()
    else:
        adapter = weft.load(output)
        assert max(value.rank for value in adapter.factors.values()) == document["smallest"]


def test_bad_input_is_one_message_and_nothing_is_written(
    llama: Made, wide_llama: Made, rows: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    words = ("curve", llama.adapter_path, "--base", llama.base, "--data", rows)
    assert "ranks: this adapter's go from 0, the base, to 4; found 8" in fail(*words, "--ranks", "1,8")
    assert "--ranks: expected whole numbers such as 1,2,4,8, found '1;2'" in fail(*words, "--ranks", "1;2")
    assert "tolerance: expected a share of the gain" in fail(*words, "--tolerance", 1.5)
    assert "--plot: expected a name that ends in .svg" in fail(*words, "--plot", tmp_path / "curve.txt")
    assert "--plot: there is no folder" in fail(*words, "--plot", tmp_path / "nowhere" / "curve.svg")
    assert "made for another base" in fail(*words[:2], "--base", wide_llama.base, "--data", rows)
    (tmp_path / "empty.jsonl").touch()
    assert "the data set is empty" in fail(*words[:4], "--data", tmp_path / "empty.jsonl")
    assert "is not empty" in fail(*words, "--output", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "held-out.jsonl"]
