"""Every recipe is valid, and runs (here on the tiny base, for one step)."""

import runpy
from pathlib import Path

import pytest

from weft.training import RunConfig, run

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    data = tmp_path / "rows.jsonl"
    runpy.run_path(str(recipe.with_name(f"{recipe.stem}_data.py")))["main"](data)  # every recipe brings its data
    shorter = {"base": str(base), "train": str(data), "output": tmp_path / "run", "max_steps": 1, "generate_rows": 1}
    result = run(RunConfig.from_yaml(recipe, shorter | {"tensorboard": False}))
    assert result.adapter.is_dir()
    assert result.train_data.rows > 100
