"""Every recipe runs as it is written on stand-ins, through the command; and the data that one brings fit it."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import weft
from weft.cli import app
from weft.training import RunConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
WITH_DATA = [path for path in RECIPES if path.with_name(f"{path.stem}_data.py").is_file()]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all recipes, so that each stand-in is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def train(*words: str | Path) -> dict[str, object]:
    result = CliRunner().invoke(app, ["train", *map(str, words), "--tensorboard", "false", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_on_stand_ins(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a tiny run needs no file of the recipe's
    found = train(recipe, "--tiny", "--output", tmp_path / "run")
    folder = tmp_path / "run-tiny"
    assert found["steps"] == 2
    assert weft.load(found["adapter"]).factors
    assert "## Settings" in (folder / "README.md").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    if RunConfig.from_yaml(recipe).has_eval:
        assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 2]


@pytest.mark.parametrize("recipe", WITH_DATA, ids=lambda path: path.stem)
def test_the_data_that_a_recipe_brings_fit_it(recipe: Path, base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    runpy.run_path(str(recipe.with_name(f"{recipe.stem}_data.py")))["main"](rows)
    words = ("--base", base, "--train", rows, "--output", tmp_path / "run", "--max-steps", 1, "--generate-rows", 1)
    assert train(recipe, *words)["train_data"]["rows"] > 100
