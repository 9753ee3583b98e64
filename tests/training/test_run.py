import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_folder import lines, same, weights
from transformers import BloomConfig, BloomForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

import weft
from weft.errors import ConfigError, DataError, TargetError, TrainingError, WeftError
from weft.tasks import TextRun, evaluate
from weft.training import RunConfig, load_base, load_text, run
from weft.training.folder import RunFolder
from weft.training.trainer import AdapterTrainer


@pytest.fixture
def settings(base: Path, pairs: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base": str(base), "train": str(pairs), "eval": str(pairs), "output": tmp_path / "run", "rank": 2,
        "learning_rate": 2e-2, "max_steps": 6, "batch_size": 5, "log_every": 2, "eval_every": 3, "save_every": 4,
        "tensorboard": False,
    }  # fmt: skip


def test_a_run_leaves_everything_in_its_folder(settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    result = run(TextRun(**settings, generate_rows=3, max_new_tokens=8))
    folder = result.folder
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "samples.jsonl", "loss.png", "metrics.png", "adapter", "README.md",
        "checkpoints",
    }  # fmt: skip
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < result.before.loss - 0.1
    assert result.steps == 6
    assert result.trainable == sum(f.A.numel() + f.B.numel() for f in weft.load(result.adapter).factors.values())
    assert json.loads(json.dumps(result.to_dict()))["after"]["loss"] == result.after.loss
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")

    logged = lines(folder)
    assert [(line["step"], "loss" in line) for line in logged] == [
        (0, False), (2, True), (3, True), (3, False), (4, True), (6, True), (6, False), (6, False)
    ]  # fmt: skip
    assert logged[-1]["eval_loss"] == result.after.loss

    text = (folder / "README.md").read_text()
    assert f"| loss (nats per learned token) | {result.before.loss:.4f} | {result.after.loss:.4f} |" in text
    assert "| rank | 2 |" in text
    answers = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(each["step"], each.get("final", False)) for each in answers[::3]] == [
        (0, False), (3, False), (6, False), (6, True)
    ]  # fmt: skip
    assert {"input": "0:", "reference": "even"}.items() <= answers[-3].items()
    for part in ("asked:\n\n```\n0:\n```", "wanted:\n\n```\neven\n```", "![metrics](metrics.png)"):
        assert part in text

    # what was saved is what was trained
    loaded = load_base(settings["base"])
    weft.attach(loaded.model, weft.load(result.adapter))
    again = evaluate(loaded.model, loaded.tokenizer, load_text(settings["eval"], tokenizer))
    assert again.loss == pytest.approx(result.after.loss, rel=1e-6)


def test_the_saved_settings_give_the_same_run_again(settings: dict[str, Any], tmp_path: Path) -> None:
    first = run(TextRun(**settings, dropout=0.2))
    second = run(RunConfig.from_yaml(first.folder / "config.yaml", {"output": tmp_path / "again"}))
    assert same(weights(first.folder), weights(second.folder))
    assert lines(first.folder) == lines(second.folder)


def test_gradient_checkpointing_changes_nothing_but_memory(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = run(TextRun(**settings, dropout=0.2))
    thrifty = run(
        TextRun(**(settings | {"output": tmp_path / "thrifty", "dropout": 0.2, "gradient_checkpointing": True}))
    )
    assert same(weights(plain.folder), weights(thrifty.folder))


def test_accumulated_batches_are_one_large_batch(settings: dict[str, Any], tmp_path: Path) -> None:
    """The loss is a mean over the tokens of a step, not a mean of the batches' means."""
    one_step = settings | {"max_steps": 1, "warmup": 0}
    large = run(TextRun(**(one_step | {"batch_size": 10})))
    changes = {"batch_size": 2, "gradient_accumulation": 5, "output": tmp_path / "small"}
    small = run(TextRun(**(one_step | changes)))
    norms = [next(line["grad_norm"] for line in lines(r.folder) if "grad_norm" in line) for r in (large, small)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # float32, another order of summation


@pytest.fixture
def worsening(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run whose evaluations get worse: what is held out contradicts what is learned."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"{i}:", "completion": "zzz"}) + "\n" for i in range(4)))
    return settings | {"eval": str(other), "eval_every": 1, "save_every": 50, "max_steps": 8}


def test_the_best_evaluation_is_kept(worsening: dict[str, Any]) -> None:
    result = run(TextRun(**worsening))
    logged = [line for line in lines(result.folder) if "eval_loss" in line and "final" not in line]
    losses = {line["step"]: line["eval_loss"] for line in logged}
    assert result.best_step == min(range(1, 9), key=losses.__getitem__) < 8
    assert result.after is not None
    assert result.after.loss == pytest.approx(losses[result.best_step], rel=1e-6)


def test_the_last_step_is_kept_if_one_asks_for_it(worsening: dict[str, Any]) -> None:
    result = run(TextRun(**worsening, keep_best=False))
    assert result.best_step is None
    assert result.after is not None
    assert result.after.loss == pytest.approx(lines(result.folder)[-2]["eval_loss"], rel=1e-6)


def test_early_stopping(worsening: dict[str, Any]) -> None:
    result = run(TextRun(**(worsening | {"max_steps": 50}), early_stopping=2))
    assert result.best_step is not None
    assert result.steps == result.best_step + 2 < 50


def test_a_share_can_be_held_out(settings: dict[str, Any]) -> None:
    result = run(TextRun(**(settings | {"eval": None, "eval_share": 0.25, "max_steps": 1})))
    assert result.train_data.rows == 15
    assert result.eval_data is not None
    assert result.eval_data.rows == 5


def test_without_held_out_data_the_card_says_so(settings: dict[str, Any]) -> None:
    result = run(TextRun(**(settings | {"eval": None, "max_steps": 1})))
    assert result.before is result.after is None
    assert "No data was held out" in (result.folder / "README.md").read_text()


def test_bfloat16_holds_the_base_and_trains_float32_factors(settings: dict[str, Any]) -> None:
    result = run(TextRun(**settings, bf16=True))
    assert {tensor.dtype for tensor in weights(result.folder).values()} == {torch.float32}
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < result.before.loss - 0.1


def test_tensorboard(settings: dict[str, Any]) -> None:
    result = run(TextRun(**(settings | {"max_steps": 1, "tensorboard": True})))
    assert list((result.folder / "tensorboard").glob("events.*"))


def test_a_folder_that_is_taken_is_refused(settings: dict[str, Any]) -> None:
    config = TextRun(**(settings | {"max_steps": 1}))
    folder = run(config).folder
    before = weights(folder)
    with pytest.raises(
        ConfigError, match="holds a run already; continue a run with --resume, replace it with --overwrite"
    ):
        run(config)
    assert same(before, weights(folder))
    run(config.model_copy(update={"seed": 1}), overwrite=True)
    assert not same(before, weights(folder))
    with pytest.raises(ConfigError, match="seed was 1, is 2"):
        run(config.model_copy(update={"seed": 2}), resume=True)


def test_somebody_elses_folder_is_never_overwritten(settings: dict[str, Any]) -> None:
    settings["output"].mkdir()
    (settings["output"] / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that is no run"):
        run(TextRun(**settings), overwrite=True)
    assert (settings["output"] / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_length": 200}, ConfigError, r"max_length: 200 tokens are more than the base's context holds \(96\)"),
        ({"base": "./none"}, ConfigError, "there is no folder ./none"),
        ({"targets": "q_prj"}, TargetError, "q_prj"),
        ({"rank": 17}, TargetError, "rank 17 is larger than"),
        ({"train": "none.jsonl"}, DataError, "there is no data file or folder none.jsonl"),
        ({"learning_rate": 1e30, "max_grad_norm": 0}, TrainingError, r"(loss|gradient) is (nan|inf) at step"),
    ],
)
def test_a_run_that_cannot_be_leaves_nothing_behind(
    settings: dict[str, Any], changes: dict[str, Any], error: type[WeftError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(TextRun(**(settings | {"save_every": 100, "eval": None} | changes)))
    assert not settings["output"].exists()


def test_too_little_memory_is_one_message(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(AdapterTrainer, "training_step", exhausted)
    with pytest.raises(TrainingError, match="too little memory for this run; lower batch_size"):
        run(TextRun(**settings))
    assert not settings["output"].exists()


def test_a_run_can_be_moved_and_resumed(settings: dict[str, Any], tmp_path: Path) -> None:
    first = run(TextRun(**settings))
    moved = first.folder.rename(tmp_path / "moved")
    expected = weights(moved)
    again = run(TextRun(**(settings | {"output": moved})), resume=True)
    assert again.best_step == first.best_step
    assert same(weights(moved), expected)


def test_a_failure_after_a_checkpoint_keeps_it(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the second checkpoint."""
    save = AdapterTrainer.save_model

    def full_disk(self: AdapterTrainer, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.state.global_step > 1:
            raise OSError(28, "No space left on device")
        save(self, output_dir, _internal_call)

    monkeypatch.setattr(AdapterTrainer, "save_model", full_disk)
    with pytest.raises(TrainingError, match=r"No space left on device.*last good checkpoint is .*checkpoint-1\)"):
        run(TextRun(**(settings | {"save_every": 1, "eval": None})))
    assert RunFolder(settings["output"]).config.is_file()
    assert not (settings["output"] / "adapter").exists()


@pytest.mark.parametrize("bf16", [False, True])
def test_batches_are_packed_where_the_base_can_take_it(settings: dict[str, Any], tmp_path: Path, bf16: bool) -> None:
    settings |= {"max_steps": 2, "bf16": bf16}
    held_out = []
    for batching, written in (("auto", "packed"), ("sorted", "sorted"), ("random", "random")):
        result = run(TextRun(**(settings | {"output": tmp_path / batching, "batching": batching})))
        assert RunConfig.from_yaml(result.folder / "config.yaml").batching == written
        assert f"| batching | {written} |" in (result.folder / "README.md").read_text()
        assert result.after is not None
        held_out.append(result.after.loss)
    assert held_out[0] == pytest.approx(held_out[2], rel=1e-2 if bf16 else 1e-4)  # the same rows in each step


def shown_by(config: RunConfig) -> str:
    """What a run prints."""
    text = io.StringIO()
    run(config, console=Console(file=text, width=200))
    return text.getvalue()


def test_a_loss_that_cannot_be_taken_in_chunks(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    assert "all learned logits" not in shown_by(TextRun(**settings))
    folder = tmp_path / "experts"
    shutil.copytree(base, folder)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(
        **small, num_key_value_heads=1, num_local_experts=4, output_router_logits=True, vocab_size=262, pad_token_id=1,
        max_position_embeddings=96,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    settings |= {"base": str(folder), "output": tmp_path / "other", "max_steps": 1, "targets": "q_proj"}
    assert "the loss is taken from all learned logits of a batch at once" in shown_by(TextRun(**settings))


def test_a_base_that_cannot_take_packed_batches(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eager"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "bloom", "architectures": ["BloomForCausalLM"], "n_layer": 2, "n_head": 2})
    )
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig.from_pretrained(folder)).save_pretrained(folder)
    settings |= {"base": str(folder), "max_steps": 1}
    with pytest.raises(ConfigError, match="batching: this base cannot take packed batches: it takes no position_ids"):
        run(TextRun(**settings, batching="packed"))
    assert not settings["output"].exists()
    assert "sorted by length, not packed: it takes no position_ids" in shown_by(TextRun(**settings))
    assert RunConfig.from_yaml(settings["output"] / "config.yaml").batching == "sorted"
