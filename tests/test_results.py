"""The page of results is what the data makes of it."""

from pathlib import Path

import pytest

from benchmarks.results import DOCS, FOLDER, PICTURES, page, read, write
from weft.compare.estimate import Estimate
from weft.compare.results import Results, Row
from weft.training import Metric


def row(name: str, values: list[float], checkpoint: int) -> Row:
    scores = {"accuracy": Estimate.of(values)}
    sweep: dict[float, float | None] = {} if name == "base" else {1e-3: values[0], 1e-2: None}
    rate = None if name == "base" else 1e-3
    return Row(name, name, rate, False, scores, checkpoint // 4, 0.5, checkpoint, 10**8, 0.25, sweep, ())


def results(lora: list[float], full: list[float]) -> Results:
    return Results(
        task="classify", base="small", train="train.csv", eval="dev.csv", test="test.csv", rows={"train": 1200},
        steps=70, rows_per_step=8, seeds=(1, 2), metric="accuracy", metrics=(Metric("accuracy", "accuracy", "{:.3f}"),),
        machine={"processor": "abacus"}, settings={"rank": 4}, command="weft compare run.yaml",
        methods=(
            row("base", [0.5], 0), row("lora@1", lora, 4000), row("lora@4", lora, 16000), row("full", full, 10**6)
        ),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, found in {"cola": results([0.7, 0.72], [0.7, 0.73]), "own": results([0.6, 0.6], [0.9, 0.9])}.items():
        (tmp_path / name).mkdir()
        found.save(tmp_path / name).rename(tmp_path / f"{name}.json")
    return tmp_path


def test_the_page_says_of_each_task_where_lora_stands(folder: Path) -> None:
    text = page(read(folder))
    good = "| Acceptable sentences (CoLA) | accuracy | 0.500 | 0.710 ± 0.127 (lora@1) | 0.715 ± 0.191 | 4 kB | 0.40% |"
    assert f"{good} as good as the best |" in text
    assert "| own | accuracy | 0.500 | 0.600 ± 0.000 (lora@1) | 0.900 ± 0.000 | 4 kB | 0.40% | behind full |" in text
    assert "70 steps of 8 rows for every method, 2 seeds" in text
    assert "| full | 0.700 | failed |" in text
    assert text.index("## Acceptable sentences") < text.index("## own")  # the known ones first
    assert "weft compare run.yaml" in text


def test_each_comparison_has_a_picture(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path / "docs")
    pictures = tmp_path / "docs" / "pictures" / "results"
    assert {path.name for path in pictures.iterdir()} == {"cola.svg", "own.svg"}
    assert "](pictures/results/cola.svg)" in (tmp_path / "docs" / "results.md").read_text()
    assert ">lora@4<" in (pictures / "cola.svg").read_text()  # text, not outlines


def test_the_page_in_the_documentation_is_what_the_data_makes() -> None:
    found = read(FOLDER)
    assert (DOCS / "results.md").read_text(encoding="utf-8") == page(found), "run python -m benchmarks.results"
    assert {path.stem for path in (DOCS / PICTURES).glob("*.svg")} == set(found)
