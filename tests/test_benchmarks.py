"""The benchmarks measure what they say, each runs, and the page of results is what the data makes of it."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import (
    algebra,
    attach,
    extract,
    generate,
    imports,
    layer,
    library,
    lorahub,
    merge,
    nested_ranks,
    quantize,
    results,
    step,
    train,
)
from benchmarks.harness import Case, Cases, Options, compare, measured
from benchmarks.records import RESULTS, Row, append, newest
from benchmarks.report import DOCS, page, write
from benchmarks.targets import TARGETS, Target
from benchmarks.tasks.rows import banking77
from weft.training import RunConfig

TINY = Options("tiny")


def row(figures: dict[str, list[float]], when: str = "2026-01-01", **setting: str | float) -> Row:
    return Row("step", setting, {name: {"seconds": values} for name, values in figures.items()}, {}, when)


@pytest.mark.parametrize(
    "cases",
    [
        *(attach.cases, algebra.cases, extract.cases, generate.cases, layer.cases, library.cases, merge.cases),
        quantize.cases,
        step.cases,
    ],
)
def test_each_runs_and_its_rows_are_read_back(cases: Cases, tmp_path: Path) -> None:
    found = list(measured(cases(TINY), Console(quiet=True)))
    for each in found:
        assert all(values for quantities in each.figures.values() for values in quantities.values())
        append(each, tmp_path)
    assert {str(each) for each in newest(tmp_path)} == {str(each) for each in found}


def test_imports_are_timed_in_fresh_interpreters() -> None:
    figures = compare({"nothing": lambda: imports.run("pass"), "json": lambda: imports.run("import json")}, 0)
    assert all(quantities["seconds"][0] > 0.001 for quantities in figures.values())


@pytest.mark.parametrize("variant", ["weft", train.PEER_AT_BEST])
def test_a_run_learns_and_reports_itself(variant: str, tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps({"prompt": f"{i} and", "completion": " so on"}) + "\n" for i in range(24)))
    files = train.write_rows(given, tmp_path, (16, 8))
    found = train.train(variant, train.Run(train.write_base("tiny", tmp_path / "base"), *files, "float32", 0))
    assert found["loss_after"] < found["loss_before"]
    assert found["label_tokens_per_second"] > 0


@pytest.mark.parametrize("nested", [False, True])
def test_a_run_gives_the_losses_of_every_rank_below_its_own(nested: bool, tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps({"prompt": f"{i} and", "completion": " so on"}) + "\n" for i in range(30)))
    found = nested_ranks.losses(nested_ranks._files(given, tmp_path, 20), 4, nested, 5e-3, 4, seed=0)
    assert list(found) == [0, 1, 2, 4]
    assert found[0] > max(found[rank] for rank in (1, 2, 4))


def test_a_task_that_is_held_out_gets_the_adapters_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for name, count in {"a": 245, "b": 245, "c": 245, "few": 180}.items():
        lines = [json.dumps({"prompt": f"{name} {i}", "completion": " so"}) for i in range(count)]
        (tmp_path / "tasks" / f"{name}.jsonl").write_text("\n".join(lines))
    first, _ = lorahub.cases(tmp_path / "tasks", tmp_path, ["a"], steps=1)
    parts = [path.read_text().splitlines() for path in (tmp_path / "rows").glob("a.*.jsonl")]
    assert sorted(map(len, parts)) == [40, 100, 105]
    assert len({line for part in parts for line in part}) == 245  # no row is in two of them
    assert first.setting == {"held out": "a", "examples": 5, "adapters": 2}
    figures = first.measure()
    assert set(figures["weights"]) == {"b", "c"}
    losses = {name: figures[name]["loss_held_out"] for name in ("base", "single, by the held-out rows", "combination")}
    assert all(len(values) == lorahub.DRAWS for values in losses.values())
    row = Row(lorahub.BENCHMARK, first.setting, figures, {}, "")
    assert f"| a | 5 | {sum(losses['base']) / 2:.3f} |" in lorahub.table([row])


def test_the_table_in_the_guide_is_what_the_data_makes() -> None:
    found = [each for each in newest(RESULTS) if each.benchmark == lorahub.BENCHMARK]
    assert lorahub.table(found) in (DOCS / "guides" / "lorahub.md").read_text(encoding="utf-8")


def test_variants_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    figures = compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 10.0, rounds=(2, 2))
    assert calls == ["a", "b"] * 3
    assert [len(quantities["seconds"]) for quantities in figures.values()] == [2, 2]


def test_every_storage_that_a_forward_pass_leaves_is_counted_once() -> None:
    x = torch.randn(100, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x.exp()  # kept by exp and, as the same storage, by the product below; 400 bytes
        z = y.view(10, 10) * y.view(10, 10).detach()  # kept by nothing
        return z.sum()  # 4 bytes

    assert step.bytes_left_by(forward) == 404


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert row({"weft": [1.0, 10.0, 3.0], "limit": [1.0, 5.0, 1.0]}).ratio("weft", "limit", "seconds") == 2.0


def test_a_target_is_decided_by_its_worst_setting_and_names_what_is_missing() -> None:
    target = Target("step", "step", "weft", 1.1, "limit", where={"model": ("small", "large")})
    rows = [row({"weft": [1.0], "limit": [1.0]}, model="small"), row({"weft": [3.0], "limit": [1.0]}, model="other")]
    assert [figure for _, figure in target.findings(rows)] == [1.0]
    assert target.unmeasured(rows) == [{"model": "large"}]
    rows.append(row({"weft": [1.2], "limit": [1.0]}, model="large"))
    assert not target.is_met(target.findings(rows)[0][1])
    assert target.unmeasured(rows) == []


def test_the_newest_row_of_a_setting_counts(tmp_path: Path) -> None:
    for figure in (1.0, 2.0):
        append(row({"weft": [figure]}, model="small"), tmp_path)
    assert [each.median("weft", "seconds") for each in newest(tmp_path)] == [2.0]


def full_run() -> list[Case]:
    modules = (algebra, attach, extract, generate, imports, layer, library, merge, nested_ranks, step, train)
    return [case for module in modules for case in module.cases(Options())]


def test_a_full_run_measures_every_setting_that_a_target_asks_for() -> None:
    cases = full_run()
    for target in TARGETS:
        figures = {name: {target.quantity: [1.0]} for name in (target.variant, target.over) if name}
        rows = [Row(case.benchmark, case.setting, figures, {}, "") for case in cases]
        assert target.findings(rows), target.what
        assert target.unmeasured(rows) == [], target.what


def test_the_page_shows_what_was_found() -> None:
    machine = {"gpu": "one", "system": "Linux", "python": "3"}
    setting = {"model": "39M", "rank": 8, "loaded": 50}
    figures = {"limit": {"seconds": [0.001]}, "weft": {"seconds": [0.004]}, "peft": {"seconds": [0.4]}}
    text = page([Row("load", setting, figures, machine, "2026-01-01")], [])
    assert "| at most 5 ms | 4 ms | met |" in text
    assert "| 39M | 8 | 50 | 1 ms | 4 ms | 400 ms |" in text


def test_the_page_in_the_documentation_is_what_the_data_makes(tmp_path: Path) -> None:
    write(RESULTS, tmp_path)
    assert (DOCS / "performance.md").read_text(encoding="utf-8") == (tmp_path / "performance.md").read_text(
        encoding="utf-8"
    ), "docs/performance.md is not what the results make of it; run python -m benchmarks.report"
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {path.name for path in (DOCS / "pictures").glob("*.svg")} == drawn


@pytest.mark.parametrize("path", sorted(Path(results.__file__).with_name("tasks").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_the_page_of_results_was_measured_with_are_runs(path: Path) -> None:
    config = RunConfig.from_yaml(path)
    assert path.stem in results.TITLES
    assert config.has_eval
    assert config.max_steps is not None  # the budget


def test_rows_for_it_are_apart_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("train", "test"):
        lines = [f"{i % 3}\tquestion {name} {i}" for i in range(6000)]
        path = tmp_path / "banking77" / f"{name}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["label\ttext", *lines]))
    found = banking77(tmp_path)
    assert {part: len(rows) for part, rows in found.items()} == {"train": 4800, "eval": 500, "test": 1000}
    assert not {row["text"] for row in found["train"]} & {row["text"] for row in found["eval"]}
    assert banking77(tmp_path) == found
