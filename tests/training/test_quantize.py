"""Runs on a base in 8 bits: the base stays so, what is trained is an adapter like any other."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

import weft
from weft.cli import app
from weft.errors import ConfigError
from weft.nn import storage_of
from weft.nn.quantized import round_to_8bit
from weft.tasks import TextRun
from weft.training import AdapterTrainer, load_base, run
from weft.training.quantize import require_quantized, weights_as


@pytest.fixture
def settings(base: Path, pairs: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base": str(base), "train": str(pairs), "eval": str(pairs), "output": tmp_path / "run", "rank": 2,
        "learning_rate": 2e-2, "max_steps": 12, "batch_size": 4, "eval_every": 6, "save_every": 4, "quantize": "8bit",
        "tensorboard": False,
    }  # fmt: skip


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_base_is_loaded_in_8_bits_but_for_its_head_and_embeddings(base: Path) -> None:
    plain, quantized = load_base(base).model, load_base(base, quantize="8bit").model
    stored = {path for path, module in quantized.named_modules() if storage_of(module) is not None}
    assert stored == {path for path, module in plain.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    for path in stored:
        W = plain.get_submodule(path).weight.detach()
        assert torch.allclose(storage_of(quantized.get_submodule(path)).dense(), round_to_8bit(W), atol=1e-7)
    size = sum(p.nbytes for p in quantized.parameters())
    rest = {name: p for name, p in plain.named_parameters() if name.removesuffix(".weight") not in stored}
    dense = sum(p.nbytes for p in plain.parameters())
    assert size == sum(p.nbytes for p in rest.values()) + (dense - sum(p.nbytes for p in rest.values())) // 4
    plan, other = (weft.plan(model, weft.LoRAConfig(rank=2)) for model in (quantized, plain))
    assert plan == other


def test_a_run_learns_and_its_adapter_goes_onto_the_plain_base(settings: dict[str, Any], base: Path) -> None:
    result = run(TextRun(**settings))
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < result.before.loss - 0.1
    plain = run(TextRun(**settings | {"quantize": "none", "output": settings["output"] / "plain"}))
    assert plain.after is not None
    assert result.after.loss == pytest.approx(plain.after.loss, rel=0.1)

    trained = weft.load(result.adapter)
    assert trained.provenance["quantize"] == "8bit"
    files = {path.name for path in result.adapter.iterdir()}
    assert files == {path.name for path in plain.adapter.iterdir()}
    assert adapter(result.folder).keys() == adapter(plain.folder).keys()
    assert "quantize='8bit'" in (result.folder / "README.md").read_text()
    weft.attach(load_base(base).model, trained)
    weft.attach(load_base(base, quantize="8bit").model, weft.load(plain.adapter))


def test_batches_are_packed_as_on_the_plain_base(settings: dict[str, Any]) -> None:
    """Outliers tie the rows of any batch together a little: that is no reason against packing."""
    folder = run(TextRun(**settings | {"max_steps": 1, "eval": None})).folder
    assert TextRun.from_yaml(folder / "config.yaml").batching == "packed"


def test_a_resumed_run_is_the_run_uninterrupted(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"dropout": 0.3, "init": "pissa", "gradient_checkpointing": True}
    whole, killed = run(TextRun(**settings)).folder, tmp_path / "killed"
    shutil.copytree(whole, killed)  # as it was left by a kill soon after step 8
    shutil.rmtree(killed / "adapter")
    shutil.rmtree(killed / "checkpoints" / "checkpoint-12")
    result = run(TextRun(**settings | {"output": killed}), resume=True)
    assert result.steps == 12
    expected, found = adapter(whole), adapter(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert (whole / "metrics.jsonl").read_text() == (killed / "metrics.jsonl").read_text()


def test_commands_take_the_base_so(settings: dict[str, Any], base: Path, pairs: Path) -> None:
    folder = run(TextRun(**settings | {"max_steps": 2, "eval": None})).folder
    losses = {}
    for how in ([], ["--quantize", "8bit"], ["--quantize", "none"]):
        command = ["eval", "--base", str(base), "--adapter", str(folder), "--data", str(pairs), "--json", *how]
        result = CliRunner().invoke(app, [*command, "--split", "train", "--generate-rows", "0"])
        assert result.exit_code == 0, result.output
        losses[" ".join(how)] = [found["loss"] for found in json.loads(result.stdout)["results"]]
    assert losses[""] == losses["--quantize 8bit"]
    assert losses[""] != losses["--quantize none"]
    assert losses[""] == pytest.approx(losses["--quantize none"], rel=0.02)

    command = ["generate", "--base", str(base), "--adapter", str(folder), "-p", "a", "--max-new-tokens", "2"]
    result = CliRunner().invoke(app, [*command, "--quantize", "8bit", "--device", "cpu"])
    assert result.exit_code == 0, result.output


def test_a_merge_on_disk_says_what_it_merges_into(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    folder = run(TextRun(**settings | {"max_steps": 2, "eval": None})).folder
    command = ["merge", str(base), str(folder), "--output", str(tmp_path / "merged"), "--overwrite"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    plain = load_base(base).model
    far = [
        float((round_to_8bit(m.weight) - m.weight.detach()).norm() / m.weight.detach().norm())
        for path, m in plain.named_modules()
        if isinstance(m, nn.Linear) and path != "lm_head"
    ]
    said = "trained on these weights in 8bit, and is merged into them as they are unquantised: the two differ by "
    assert f"{said}{sum(far) / len(far):.3%} of their norm on average" in result.output
    report = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert report["trained_on"] == "8bit"
    assert report["mean_rounding"] == pytest.approx(sum(far) / len(far))

    weft.attach(plain, weft.load(folder))
    weft.merge(plain)
    merged = load_base(tmp_path / "merged").model
    assert all(torch.equal(p, plain.get_parameter(name)) for name, p in merged.named_parameters())

    settings |= {"quantize": "none", "max_steps": 2, "eval": None, "output": tmp_path / "plain"}
    result = CliRunner().invoke(app, ["merge", str(base), str(run(TextRun(**settings)).folder), *command[3:]])
    assert result.exit_code == 0, result.output
    assert "unquantised" not in result.output


def test_a_missing_bitsandbytes_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ConfigError, match=r"quantize: 8bit needs bitsandbytes.*pip install 'weft\[quant\]'"):
        load_base(base, quantize="8bit")


def test_a_model_without_a_layer_to_quantise_is_named() -> None:
    assert weights_as(torch.bfloat16, "none") == {"dtype": torch.bfloat16}
    require_quantized(nn.Linear(2, 2), "none")
    with pytest.raises(ConfigError, match="quantize: no layer of this Linear was quantised"):
        require_quantized(nn.Linear(2, 2), "8bit")


def test_the_trainer_leaves_the_model_as_transformers_knows_it(settings: dict[str, Any], base: Path) -> None:
    model = load_base(base, quantize="8bit").model
    assert isinstance(model, LlamaForCausalLM)
    before = set(vars(model))
    weft.attach(model, weft.LoRAConfig(rank=2))
    AdapterTrainer(model)
    weft.detach(model)
    assert not model._hf_peft_config_loaded
    assert "_hf_peft_config_loaded" not in set(vars(model)) - before
