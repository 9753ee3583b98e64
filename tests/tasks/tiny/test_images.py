"""Stand-ins for pipelines and pictures are what the task of images opens."""

from pathlib import Path

import pytest

from weft.data.images import find_pictures
from weft.tasks.diffusion.pipeline import load_pipeline
from weft.tasks.tiny import bases, build, data


@pytest.mark.parametrize(
    ("name", "denoiser"),
    [("stable-diffusion-1.5", "unet"), ("stable-diffusion-xl", "unet"), ("stable-diffusion-3", "transformer")],
)
def test_a_pipeline_opens(name: str, denoiser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = build(bases, name)
    pipeline = load_pipeline(made["base"])
    assert pipeline.denoiser == denoiser
    assert pipeline.encode(["a photo of sks dog"])["states"].isfinite().all()
    assert len(find_pictures(build(data, "image")["train"], "x")) == 5
