"""Runs that train companions: prompts stand in the rows wherever rows are read, and a run resumes bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from companions.cases import FAMILY
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments
from typer.testing import CliRunner

import weft
from weft import Bottleneck, LoRAConfig, Prefix, Prompt
from weft.cli import app
from weft.data.classification import ClassCollator
from weft.data.packed import PackedCollator
from weft.data.text import IGNORED, Collator
from weft.errors import ConfigError, TrainingError
from weft.model import LayPrompt
from weft.tasks import TextRun, evaluate
from weft.tasks.language.generation import Decoding
from weft.training import AdapterTrainer, load_base, load_text, run


@pytest.fixture
def settings(base: Path, pairs: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base": str(base), "train": str(pairs), "eval": str(pairs), "output": tmp_path / "run", "rank": 2,
        "learning_rate": 2e-2, "max_steps": 8, "batch_size": 5, "log_every": 2, "eval_every": 4, "save_every": 4,
        "tensorboard": False, "generate_rows": 2, "max_new_tokens": 4,
    }  # fmt: skip


METHODS: dict[str, dict[str, Any]] = {
    "factors and all": {"companions": ("prefix", {"name": "bottleneck", "width": 4}, {"name": "prompt", "length": 5})},
    "prompt alone, padded": {"targets": (), "companions": ("prompt",), "batching": "sorted", "learning_rate": 0.1},
    "prompt alone, packed": {"targets": (), "companions": ("prompt",), "batching": "packed", "learning_rate": 0.1},
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_run_learns_and_what_it_saved_scores_what_it_scored(settings: dict[str, Any], method: dict[str, Any]) -> None:
    result = run(TextRun(**settings | method))
    loaded = load_base(settings["base"])
    data = load_text(settings["eval"], loaded.tokenizer)
    alone = evaluate(loaded.model, loaded.tokenizer, data)
    assert result.before is not None
    assert result.after is not None
    assert result.before.loss == pytest.approx(alone.loss, rel=1e-6)  # the base itself, without a prompt
    assert result.before.scores["tokens"] == result.after.scores["tokens"]
    assert result.after.loss < result.before.loss - 0.01
    adapter = weft.load(result.adapter)
    assert result.trainable == adapter.num_parameters
    weft.attach(loaded.model, adapter)
    again = evaluate(loaded.model, loaded.tokenizer, data, generate_rows=2, decoding=Decoding(max_new_tokens=4))
    assert again.loss == pytest.approx(result.after.loss, rel=1e-6)
    assert again.samples == result.after.samples
    options = ["--base", settings["base"], "--adapter", str(result.adapter), "--generate-rows", "0", "--json"]
    shown = CliRunner().invoke(app, ["eval", "--data", settings["eval"], *options])
    base, adapted = json.loads(shown.stdout)["results"]
    assert base["loss"] == pytest.approx(result.before.loss, rel=1e-6)
    assert adapted["loss"] == pytest.approx(result.after.loss, rel=1e-6)


def test_a_run_with_companions_resumes_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    config = TextRun(**settings | METHODS["factors and all"] | {"generate_rows": 0})
    whole = run(config).folder
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    for done in ("adapter", "checkpoints/checkpoint-8"):
        shutil.rmtree(killed / done)
    run(config.model_copy(update={"output": killed}), resume=True)
    expected, found = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, killed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert any(".companion.prompt." in key for key in found)


def test_a_prompt_is_laid_with_labels_that_learn_the_same_tokens(model: LlamaForCausalLM) -> None:
    weft.attach(model, LoRAConfig(targets=(), companions=(Prompt(length=2),)))
    first = model.get_input_embeddings().num_embeddings
    lay = LayPrompt(model, (5,), IGNORED)
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    for collate in (Collator(0, lay), PackedCollator(lay)):
        batch = collate(rows)
        ids, labels = (batch[key].flatten().tolist() for key in ("input_ids", "labels"))
        assert ids[:5] == [5, first, first + 1, 6, 7]
        assert ids[5:9] == [first, first + 1, 8, 9]
        assert [label for label in labels if label != IGNORED][-3:] == [6, 7, 9]
    with weft.active(model, None):
        assert Collator(0, lay)(rows)["input_ids"].shape == (2, 3)


def test_a_prompt_is_laid_before_sources_and_texts_too() -> None:
    config = LoRAConfig(targets=(), companions=(Prompt(length=2),))
    t5, bert = (weft.attach(FAMILY[name].base(), config) for name in ("t5", "bert"))
    pair = Collator(0, LayPrompt(t5))([{"input_ids": [5, 6], "labels": [7, 8]}])
    assert {key: value.tolist() for key, value in pair.items()} == {
        "input_ids": [[32, 33, 5, 6]], "attention_mask": [[1, 1, 1, 1]], "labels": [[7, 8]]
    }  # fmt: skip
    text = ClassCollator(0, LayPrompt(bert, (5,)))(
        [{"input_ids": [5, 6, 7], "labels": 1, "token_type_ids": [0, 0, 1]}, {"input_ids": [5], "labels": 0,
         "token_type_ids": [0]}]
    )  # fmt: skip
    assert text["input_ids"].tolist() == [[5, 32, 33, 6, 7], [5, 32, 33, 0, 0]]
    assert text["token_type_ids"].tolist() == [[0, 0, 0, 0, 1], [0] * 5]
    assert text["labels"].tolist() == [1, 0]
    t5.config.decoder_start_token_id = 0
    with torch.no_grad():
        assert t5(**pair).loss.isfinite()
        assert bert(**text).loss.isfinite()


def test_a_prompt_that_no_row_has_is_an_error(model: LlamaForCausalLM, tmp_path: Path) -> None:
    weft.attach(model, LoRAConfig(rank=2, companions=(Prefix(length=2), Bottleneck(width=2), Prompt(length=2))))
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", remove_unused_columns=False, disable_tqdm=True
    )
    trainer = AdapterTrainer(model, arguments, train_dataset=rows, data_collator=Collator(0))
    with pytest.raises(TrainingError, match=r"no gradient in 1 modules:\n  model\.embed_tokens\.prompt"):
        trainer.train()


def test_the_context_has_to_hold_the_prompt_too(settings: dict[str, Any]) -> None:
    long = {"companions": ({"name": "prompt", "length": 90},)}
    with pytest.raises(ConfigError, match=r"max_length: 20 tokens are more than .* beside a prompt of 90 \(6\)"):
        run(TextRun(**settings | long | {"max_length": 20}))
    with pytest.raises(ConfigError, match=r"a prompt of 96 leaves no room for a row in the base's context \(96"):
        run(TextRun(**settings | {"companions": ({"name": "prompt", "length": 96},)}))


def test_companions_at_the_command_line(
    settings: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    options = ["--companions", "prefix,bottleneck", "--companions", "{name: prompt, length: 3}", "--targets", ""]
    runner = CliRunner()
    planned = runner.invoke(app, ["plan", settings["base"], *options, "--json"])
    assert {c["name"] for c in json.loads(planned.stdout)["companions"]} == {"prefix", "bottleneck", "prompt"}
    output = tmp_path / "cli"
    flags = ["--base", settings["base"], "--train", settings["train"], "--output", str(output), "--max-steps", "1"]
    trained = runner.invoke(app, ["train", *flags, *options])
    assert trained.exit_code == 0, trained.output
    adapter = weft.load(output / "adapter")
    assert adapter.config.companions == (Prefix(), Bottleneck(), Prompt(length=3))
    assert not adapter.factors
    said = runner.invoke(
        app,
        ["generate", "--base", settings["base"], "--adapter", str(output / "adapter"), "-p", "1:", "--greedy",
         "--max-new-tokens", "3", "--with-base", "--json"],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    wrong = runner.invoke(app, ["plan", settings["base"], "--companions", "prefx"])
    assert wrong.exit_code != 0
    assert "there is no companion 'prefx'; did you mean 'prefix'" in wrong.output
