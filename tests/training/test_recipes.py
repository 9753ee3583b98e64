"""Every recipe is valid, and runs (here on the tiny base, for one step)."""

from pathlib import Path

import pytest

from weft.training import RunConfig, run

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shorter = {"base": str(base), "output": tmp_path / "run", "max_steps": 1, "generate_rows": 1, "tensorboard": False}
    result = run(RunConfig.from_yaml(recipe, shorter))
    assert result.adapter.is_dir()
    assert result.train_data.rows > 100
