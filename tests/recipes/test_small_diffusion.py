"""The small pipeline's script makes a pipeline that the task of images takes."""

import random
import runpy
import sys
from pathlib import Path

import pytest
import torch

import weft
from weft.tasks.diffusion.loss import DenoisingLoss
from weft.tasks.diffusion.pipeline import load_pipeline
from weft.tasks.tiny.pipelines import draw_pictures

SCRIPTS = Path(weft.__file__).parents[2] / "recipes" / "small_diffusion"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_scenes_follow_from_the_seed_and_are_captioned_in_known_words() -> None:
    names = runpy.run_path(str(SCRIPTS / "scenes.py"))
    (first, caption), (again, same) = (names["scene"](random.Random(3)) for _ in range(2))
    assert (first.tobytes(), caption) == (again.tobytes(), same)
    assert first.size == (32, 32)
    assert set(caption.split()) <= set(names["WORDS"])


def test_what_it_trains_is_a_pipeline_that_can_learn_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_pictures(tmp_path / "own")
    words = ["--minutes", "0.02", "--scenes", "20", "--pictures", str(tmp_path / "own"), "a photo of a ball"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--output", str(tmp_path / "base"), *words])
    runpy.run_path(str(SCRIPTS / "pretrain.py"), run_name="__main__")
    pipeline = load_pipeline(tmp_path / "base")
    assert pipeline.pipe.tokenizer.tokenize("a photo of sks dog") == ["a", "photo", "of", "sks", "dog"]
    loss = DenoisingLoss(pipeline, ["a photo of sks dog"])
    given = {"prompt": torch.tensor([0]), "geometry": torch.zeros(1, 4), "weight": torch.ones(1)}
    assert loss(torch.randn(1, 4, 16, 16), **given)["loss"].isfinite()
