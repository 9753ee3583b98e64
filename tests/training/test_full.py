import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import lines
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from weft.data.text import Collator
from weft.tasks import TextRun, evaluate
from weft.training import Evaluation, load_text
from weft.training.full import load_whole, run_full


@pytest.fixture
def settings(base: Path, pairs: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base": str(base), "train": str(pairs), "eval": str(pairs), "output": tmp_path / "run", "learning_rate": 1e-2,
        "max_steps": 3, "batch_size": 20, "warmup": 0, "schedule": "constant", "max_grad_norm": 0, "eval_every": 3,
        "tensorboard": False,
    }  # fmt: skip


def test_it_is_a_plain_loop_over_all_parameters(
    settings: dict[str, Any], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    data = load_text(settings["train"], tokenizer)
    batch = Collator(tokenizer.pad_token_id)(list(data))  # all rows: their order is of no matter
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    result = run_full(TextRun(**settings))
    trained = load_file(result.adapter / "model.safetensors")
    assert trained.keys() == before.keys()  # the head is tied to the embedding, and stored once
    assert result.trainable == sum(tensor.numel() for tensor in before.values())
    assert result.share == 1.0
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).norm()
        assert moved > 0
        assert (trained[name] - parameter).norm() < 1e-3 * moved, name  # float32, another order of summation


def test_the_best_weights_are_kept_and_are_those_of_the_file(
    settings: dict[str, Any], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """What is held out contradicts what is learned, so that evaluations get worse."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"{i}:", "completion": "zzz"}) + "\n" for i in range(4)))
    settings |= {"eval": str(other), "eval_every": 1, "max_steps": 6, "batch_size": 5, "learning_rate": 3e-2}
    result = run_full(TextRun(**settings))
    logged = [line for line in lines(result.folder) if "eval_loss" in line and "final" not in line]
    losses = {line["step"]: line["eval_loss"] for line in logged}
    assert result.best_step == min(range(1, 7), key=losses.__getitem__) < 6
    assert result.after is not None
    assert result.after.loss == pytest.approx(losses[result.best_step], rel=1e-6)

    load_whole(model, result.adapter)
    again = evaluate(model, tokenizer, load_text(other, tokenizer))
    assert again.loss == pytest.approx(result.after.loss, rel=1e-6)
    assert len(list((result.folder / "checkpoints").iterdir())) == 1


def test_in_bfloat16_small_updates_are_not_lost(settings: dict[str, Any]) -> None:
    known = Evaluation(20, {"loss": 9.0})
    result = run_full(TextRun(**(settings | {"max_steps": 1, "learning_rate": 1e-5}), bf16=True), before=known)
    assert result.before == known  # and the base is not evaluated again
    trained = load_file(result.adapter / "model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    fresh = LlamaForCausalLM.from_pretrained(settings["base"]).get_parameter("model.norm.weight")
    moved = trained["model.norm.weight"] - fresh  # of ones: bfloat16 has no number between 1 and 1.0078
    assert 0 < moved.abs().max() < 1e-4
