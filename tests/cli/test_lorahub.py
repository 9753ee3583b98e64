"""weft combine --method lorahub, as a person runs it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import weft

Run = Callable[..., object]


@pytest.fixture
def adapters(base: Path, tmp_path: Path) -> list[Path]:
    """Two, made for the tiny base."""
    model = LlamaForCausalLM.from_pretrained(base)
    paths = []
    for name in ("one", "two"):
        weft.attach(model, weft.LoRAConfig(rank=2), name=name)
        with torch.no_grad():
            for parameter in weft.trainable_parameters(model):
                parameter.normal_(std=0.5)
        paths.append(weft.collect(model, name).save(tmp_path / name))
        weft.detach(model)
    return paths


@pytest.fixture
def few(tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}:", "completion": f" {i % 3}"}) + "\n" for i in range(5)))
    return path


@pytest.fixture
def more(tmp_path: Path) -> Path:
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}:", "completion": f" {i % 3}"}) + "\n" for i in range(5, 12)))
    return path


@pytest.fixture
def words(base: Path, adapters: list[Path], few: Path, tmp_path: Path) -> list[object]:
    return ["combine", "--method", "lorahub", *adapters, "--base", base, "--examples", few, "--out", tmp_path / "out"]


def test_it_shows_weights_and_losses_and_writes_the_adapter(
    run: Run, words: list[object], more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run(*words, "--held-out", more, "--budget", 10).stdout  # type: ignore[attr-defined]
    rows = {line.split("  ")[0].strip(): line.split() for line in text.splitlines()}
    for name in ("the base alone", "one", "two", "equal weights", "the combination"):
        assert float(rows[name][-1]) > 0  # on the held-out rows
        assert float(rows[name][-2]) > 0
    assert "on the examples: " in text
    assert "on the held-out rows: " in text
    written = weft.load(tmp_path / "out")
    weights = {entry["name"]: entry["weight"] for entry in written.provenance["lineage"]["inputs"]}
    assert {name: float(rows[name][1]) for name in weights} == pytest.approx(weights, abs=5e-4)


def test_json_has_every_loss_and_trial(run: Run, words: list[object], more: Path, few: Path, tmp_path: Path) -> None:
    without = json.loads(run(*words, "--json", "--rank", 2).stdout)  # type: ignore[attr-defined]
    assert len(without["trials"]) == 20  # ten for each adapter
    assert without["gain"]["held_out"] is None
    assert without["relative_error"] >= 0
    found = json.loads(
        run(*words, "--json", "--held-out", more, "--budget", 8, "--overwrite", "--bounds", "0,1").stdout  # type: ignore[attr-defined]
    )
    assert len(found["trials"]) == 8
    assert all(0 <= weight <= 1 for trial in found["trials"] for weight in trial["weights"])
    losses = found["losses"]
    assert losses["combination"]["examples"] <= min(each["examples"] for each in losses["adapters"].values()) + 1e-6
    best = found["best_single"]["held_out"]
    expected = losses["adapters"][best]["held_out"] - losses["combination"]["held_out"]
    assert found["gain"]["held_out"] == pytest.approx(expected, abs=1e-9)
    assert found["lineage"]["method"]["bounds"] == [0, 1]
    assert weft.load(tmp_path / "out").provenance["lineage"] == found["lineage"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--weights", "1,1"], "--weights: the method 'lorahub' finds the weights itself"),
        (["--seed", "1"], "--seed: the method 'lorahub' finds the weights itself"),
        (["--bounds", "0.5,1"], "bounds: expected two numbers with 0 and 1 between them"),
        (["--bounds", "wide"], "bounds: expected two numbers with a comma"),
        (["--penalty", "-1"], "penalty: expected a number of at least 0"),
        (["--budget", "7"], "budget: 7 evaluations are too few for 2 weights"),
        (["--examples", "none.jsonl"], "there is no data file or folder none.jsonl"),
        (["--base", "./nowhere"], "base: there is no folder ./nowhere"),
    ],
)
def test_a_mistake_is_one_message_with_nothing_written(
    fail: Callable[..., str], words: list[object], tmp_path: Path, changed: list[str], message: str
) -> None:
    assert message in fail(*words, *changed)
    assert not (tmp_path / "out").exists()


def test_rows_and_adapters_that_cannot_be_are_refused(
    fail: Callable[..., str], words: list[object], adapters: list[Path], few: Path, base: Path, tmp_path: Path
) -> None:
    start = ["combine", "--method", "lorahub", "--base", base, "--out", tmp_path / "out"]
    assert "--examples: the method 'lorahub' needs a few rows" in fail(*start, *adapters)
    assert "adapters: found 1, expected two or more" in fail(*start, adapters[0], "--examples", few, "--budget", 9)
    assert "5 of 5 rows are among the examples" in fail(*words, "--held-out", few)
    few.write_text("")
    assert "the data set is empty" in fail(*words)
    few.write_text('{"prompt": "1:", "completion": " "}\n')
    assert "few.jsonl line 1: the column 'completion' is empty" in fail(*words)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(
    fail: Callable[..., str], words: list[object], tmp_path: Path, base: Path
) -> None:
    other = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    other.save_pretrained(tmp_path / "other")
    for file in base.glob("tokenizer*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    assert "made for another base" in fail(*words, "--base", tmp_path / "other")
    assert not (tmp_path / "out").exists()


def test_other_methods_refuse_its_options(
    fail: Callable[..., str], adapters: list[Path], few: Path, tmp_path: Path
) -> None:
    message = fail("combine", *adapters, "--examples", few, "--out", tmp_path / "out")
    assert "--examples: the method 'linear' takes no examples and no base" in message
    assert not (tmp_path / "out").exists()


def test_without_nevergrad_the_message_names_the_extra(
    fail: Callable[..., str], words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("weft.training.weight_search", "weft.training.lorahub"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "nevergrad", None)  # what Python keeps for a module that is not there
    message = fail(*words)
    assert "this command needs nevergrad, which is not installed; run: pip install 'weft[hub-search]'" in message
    assert not (tmp_path / "out").exists()
