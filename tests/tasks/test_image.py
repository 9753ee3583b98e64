"""A run on pictures, from a pipeline's folder to the files that diffusers and ComfyUI load."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from pipelines import PIPELINES, PROMPT, computed
from safetensors.torch import load_file

import weft
from weft.errors import ConfigError, DataError
from weft.tasks.diffusion.pipeline import load_pipeline
from weft.tasks.image import parts_of
from weft.tasks.settings.image import ImageRun
from weft.tasks.tiny.pipelines import draw_pictures
from weft.training import RunConfig, run
from weft.training.full import run_full

WEIGHTS = "pytorch_lora_weights.safetensors"
TOLERANCE = dict(rtol=1e-4, atol=1e-4)  # float32: after two steps of sampling, in which latents are about 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and the pipelines."""
    place = tmp_path_factory.mktemp("images")
    for kind in ("sd15", "sdxl"):
        PIPELINES[kind]().save_pretrained(place / kind)
    draw_pictures(place / "pictures")
    return place


def settings(place: Path, output: Path, kind: str = "sd15", **changes: Any) -> dict[str, Any]:
    return {
        "task": "image", "base": str(place / kind), "train": str(place / "pictures"), "output": output,
        "instance_prompt": PROMPT, "eval_share": 0.3, "resolution": 32, "rank": 2, "alpha": 2.0,
        "learning_rate": 3e-2, "batch_size": 2, "max_steps": 4, "eval_every": 2, "save_every": 2, "log_every": 1,
        "validation_pictures": 2, "sampling_steps": 2, "eval_timesteps": 4, "tensorboard": False, **changes,
    }  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dog(place: Path) -> Path:
    return run(RunConfig.from_dict(settings(place, place / "dog"))).folder


def test_a_run_learns_and_leaves_a_grid_of_each_evaluation(dog: Path) -> None:
    evaluations = [line for line in lines(dog) if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 2, 4, 4]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    grids = sorted((dog / "pictures").iterdir())
    assert [grid.name for grid in grids] == ["final.png", "step-000000.png", "step-000002.png", "step-000004.png"]
    first, last = Image.open(grids[1]), Image.open(grids[3])
    assert first.size == last.size == (2 * 32, 32)
    assert first.tobytes() != last.tobytes()


def test_diffusers_and_comfyuis_files_beside_the_adapter_are_the_adapter(dog: Path, place: Path) -> None:
    ours = DiffusionPipeline.from_pretrained(place / "sd15")
    adapter = weft.load(dog / "adapter")
    weft.attach(parts_of(ours, "unet"), adapter)
    assert weft.load(dog / "adapter" / WEIGHTS).provenance["base"] == str(place / "sd15")
    assert {path.rpartition(".")[2] for path in adapter.factors} == {"to_q", "to_k", "to_v", "0"}
    expected = computed(ours)
    for name in (WEIGHTS, "dog-comfyui.safetensors"):
        theirs = DiffusionPipeline.from_pretrained(place / "sd15")
        theirs.load_lora_weights(dog / "adapter", weight_name=name)
        assert torch.allclose(computed(theirs), expected, **TOLERANCE), name
    assert not torch.allclose(computed(DiffusionPipeline.from_pretrained(place / "sd15")), expected, **TOLERANCE)


def test_the_lines_of_the_card_run(dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = (dog / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("sks dog'", "sks dog', num_inference_steps=2"), {})
    assert Image.open(tmp_path / "picture.png").size == (32, 32)


def test_a_killed_run_resumed_is_the_run_uninterrupted(place: Path, tmp_path: Path) -> None:
    """With all that draws at random: flips, pictures of the class, text encoders, noise."""
    changes = dict(prior_preservation=True, class_prompt="a photo of a dog", num_class_pictures=3, dropout=0.2,
                   train_text_encoder=True, flip=True, max_steps=4, gradient_accumulation=2,
                   validation_pictures=0)  # fmt: skip
    whole = run(RunConfig.from_dict(settings(place, tmp_path / "whole", **changes))).folder
    killed = RunConfig.from_dict(settings(place, tmp_path / "killed", **changes))
    (tmp_path / "run.yaml").write_text(killed.to_yaml())
    dying = """
import os, signal, sys
from weft.tasks.diffusion.loss import DenoisingLoss
from weft.training import RunConfig, run
from weft.training.full import run_full
steps, forward = [], DenoisingLoss.forward
def dies(*args, **given):
    steps.append(1)
    if len(steps) == 6:  # in the middle of the third step, after the first checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(*args, **given)
DenoisingLoss.forward = dies
run(RunConfig.from_yaml(sys.argv[1]))
"""
    ended = subprocess.run([sys.executable, "-c", dying, tmp_path / "run.yaml"],
                           env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False)  # fmt: skip
    assert ended.returncode == -9, ended.stderr.decode()
    assert not (tmp_path / "killed" / "adapter").exists()
    resumed = run(killed, resume=True).folder
    expected, found = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, resumed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert lines(resumed) == lines(whole)
    assert any(key.startswith("base_model.model.text_encoder.") for key in found)


def test_the_base_draws_the_class_once_and_another_run_uses_what_it_drew(place: Path, tmp_path: Path) -> None:
    changes = dict(prior_preservation=True, class_prompt="a dog", class_pictures=str(tmp_path / "dogs"),
                   num_class_pictures=3, max_steps=1, eval_share=None, validation_pictures=0)  # fmt: skip
    first = run(RunConfig.from_dict(settings(place, tmp_path / "a", **changes)))
    drawn = sorted((tmp_path / "dogs").iterdir())
    assert [file.name for file in drawn] == ["00000.png", "00001.png", "00002.png"]
    for file in drawn:
        Image.new("RGB", (32, 32), "red").save(file)
    red = drawn[0].read_bytes()
    again = run(RunConfig.from_dict(settings(place, tmp_path / "b", **changes)))
    assert drawn[0].read_bytes() == red
    assert first.train_loss != again.train_loss
    assert not (again.adapter / "pictures.png").exists()


def test_without_held_out_pictures_there_is_a_grid_at_the_end(place: Path, tmp_path: Path) -> None:
    prompts = (PROMPT, "a red square")
    changes = dict(eval_share=None, max_steps=1, validation_prompts=prompts, variant="dora")
    result = run(RunConfig.from_dict(settings(place, tmp_path / "run", "sdxl", **changes)))
    assert result.after is None
    assert Image.open(result.adapter / "pictures.png").size == (64, 64)
    assert not (result.adapter / WEIGHTS).exists()  # DoRA is nothing that it can hold
    assert "weft.attach(parts_of(pipe, 'unet')" in (result.folder / "README.md").read_text()


def test_the_whole_unet_learns_in_full_fine_tuning_and_nothing_else(place: Path, tmp_path: Path) -> None:
    result = run_full(RunConfig.from_dict(settings(place, tmp_path / "run", max_steps=2, learning_rate=1e-3)))
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < result.before.loss
    trained = load_file(result.adapter / "model.safetensors")
    base = load_file(place / "sd15" / "unet" / "diffusion_pytorch_model.safetensors")
    assert trained.keys() == {f"unet.{name}" for name in base}
    assert not torch.equal(trained["unet.conv_in.weight"], base["conv_in.weight"])


def test_all_linear_and_all_layers_take_more_than_attention(place: Path) -> None:
    model = parts_of(load_pipeline(place / "sd15").pipe, "unet")
    counts = []
    for targets in ("attention", "all-linear", "all-layers"):
        config = ImageRun(**settings(place, place / "unused", targets=targets))
        counts.append(len(weft.plan(model, config.lora()).modules))
    attention = sum(path.endswith(("to_q", "to_k", "to_v", "to_out.0")) for path, _ in model.named_modules())
    assert counts[0] == attention < counts[1] < counts[2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prior_preservation": True}, "prior_preservation needs class_prompt"),
        ({"class_pictures": "dogs"}, "class_pictures are learned with prior_preservation only"),
        ({"quantize": "8bit"}, "a pipeline cannot be held in 8bit"),
        ({"resolution": 100}, "resolution: expected .*multiple of 8"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], expected: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        ImageRun(**settings(place, place / "unused", **changes))


def test_a_base_that_is_no_known_pipeline_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(ConfigError, match="is a DDPMPipeline; weft trains StableDiffusionPipeline, "):
        load_pipeline(tmp_path / "other")
    with pytest.raises(ConfigError, match="diffusers cannot load"):
        load_pipeline(place / "sd15" / "unet")
    with pytest.raises(ConfigError, match="there is no folder"):
        load_pipeline(tmp_path / "gone")


def test_one_picture_cannot_be_split(place: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "one", count=1)
    with pytest.raises(DataError, match="one picture cannot be split"):
        run(RunConfig.from_dict(settings(place, tmp_path / "run", train=str(tmp_path / "one"))))
    assert not (tmp_path / "run").exists()


def test_every_setting_is_written_and_read_back(place: Path, tmp_path: Path) -> None:
    config = ImageRun(**settings(place, tmp_path, validation_prompts=("a", "b")))
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert RunConfig.from_yaml(tmp_path / "run.yaml") == config
    assert yaml.safe_load(config.to_yaml())["task"] == "image"
