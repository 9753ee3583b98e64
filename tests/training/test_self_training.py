"""Self-training: what is labelled, what never is, what a round learns, and what is said of the gain."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import same, weights
from typer.testing import CliRunner

import weft
from weft.cli import app
from weft.errors import ConfigError, DataError
from weft.tasks import ClassifyRun
from weft.tasks.classify import ClassifyTask
from weft.tasks.tiny import bases, build
from weft.training import RunConfig, run, self_train
from weft.training.pseudo_labels import Guess, confident


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int, seed: int, labels: bool = True) -> list[dict[str, Any]]:
    """Words that begin with + or -, and the labels good and bad."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        word = "".join(draw.choices("abcdefgh", k=4))
        made.append({"text": f"{'+-'[i % 2]} {word}"} | ({"label": ("good", "bad")[i % 2]} if labels else {}))
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield str(build(bases, "bert")["base"])


@pytest.fixture
def settings(base: str, tmp_path: Path) -> dict[str, Any]:
    held = rows(12, 2)
    unlabeled = [*rows(20, 3, labels=False), {"text": held[0]["text"].upper().replace(" ", "  ")}, rows(6, 1)[0]]
    return {
        "base": base, "train": str(write(tmp_path / "train.jsonl", rows(6, 1))),
        "eval": str(write(tmp_path / "eval.jsonl", held)), "rounds": 2, "confidence": 0.6,
        "unlabeled": str(write(tmp_path / "unlabeled.jsonl", unlabeled)), "output": tmp_path / "run", "rank": 4,
        "learning_rate": 2e-2, "max_steps": 20, "batch_size": 4, "eval_every": 20, "save_every": 10,
        "tensorboard": False,
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rounds_learn_from_what_the_newest_model_is_sure_of(settings: dict[str, Any]) -> None:
    result = self_train(ClassifyRun(**settings))
    folder = result.folder
    held_out = {row["text"] for row in rows(12, 2)}
    first = result.rounds[1].pseudo
    assert first is not None
    assert (first.rows, first.held_out, first.known) == (20, 1, 1)  # equal but for case and white space is equal
    assert 0 < first.count <= 20
    for number, each in enumerate(result.rounds):
        if each.pseudo is None:
            continue
        learned = read(folder / "rounds" / f"{number}.jsonl")
        assert learned[:6] == rows(6, 1)
        assert len(learned) == 6 + each.pseudo.count == each.result.train_data.rows
        assert all(row["confidence"] >= 0.6 for row in learned[6:])
        assert not {row["text"].lower() for row in learned[6:]} & held_out
        assert sum(row["label"] == "good" for row in learned[6:]) == each.pseudo.labels.get("good", 0)

        # labels come from the adapter of the round before, and no other
        task = ClassifyTask.open(ClassifyRun(**settings, bf16=False), None)
        weft.attach(task.model, weft.load(folder / "rounds" / str(number - 1) / "adapter"))
        guesses = confident(task.guess(task.unlabeled().rows), 0.6)
        assert [(guess.row["text"], guess.label) for guess in guesses] == [
            (row["text"], row["label"]) for row in learned[6:]
        ]
    best = result.rounds[result.kept]
    assert best.after.scores["matthews"] == max(each.after.scores["matthews"] for each in result.rounds)
    kept, own = weft.load(result.adapter), weft.load(best.result.adapter)
    assert all(torch.equal(kept.factors[path].B, own.factors[path].B) for path in own.factors)
    assert (result.adapter / "config.json").is_file()
    card = (folder / "README.md").read_text()
    assert result.verdict in card
    assert json.loads((folder / "rounds" / "result.json").read_text())["gain"] is (result.kept > 0)
    with pytest.raises(ConfigError, match="holds a run already"):
        self_train(ClassifyRun(**settings))


def test_no_gain_keeps_the_labelled_rows_own_adapter_and_says_so(settings: dict[str, Any]) -> None:
    # wrong labels for what is held out: learning more of the same pattern cannot better it
    held = [row | {"label": {"good": "bad", "bad": "good"}[row["label"]]} for row in rows(12, 2)]
    settings |= {"eval": str(write(Path(settings["eval"]), held)), "rounds": 1}
    result = self_train(ClassifyRun(**settings))
    assert result.kept == 0
    assert result.verdict.startswith("no gain: Matthews correlation")
    plain = run(ClassifyRun(**(settings | {"unlabeled": None, "output": Path(settings["output"]).with_name("plain")})))
    assert same(weights(result.folder), weights(plain.folder))


def test_where_nothing_is_sure_enough_the_rounds_end(settings: dict[str, Any]) -> None:
    result = self_train(ClassifyRun(**(settings | {"confidence": 1.0, "learning_rate": 1e-6, "max_steps": 1})))
    assert len(result.rounds) == 1
    assert result.ended is not None
    assert result.ended.count == 0
    assert "sure of no unlabelled row" in result.verdict


def test_a_killed_self_training_goes_on_and_ends_in_the_same_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"rounds": 1, "dropout": 0.1}
    whole = self_train(ClassifyRun(**settings))
    assert len(whole.rounds) == 2
    folder = shutil.copytree(whole.folder, tmp_path / "killed")  # as a kill in the midst of the first round leaves it
    for path in ("adapter", "rounds/1/adapter", "rounds/1/checkpoints/checkpoint-20"):
        shutil.rmtree(folder / path)
    for path in ("README.md", "rounds/result.json", "rounds/1/README.md"):
        (folder / path).unlink()
    labelled = (folder / "rounds" / "1.jsonl").stat().st_mtime_ns
    result = CliRunner().invoke(app, ["train", "--resume", str(folder), "--json"])
    assert result.exit_code == 0, result.output + result.stderr
    assert json.loads(result.stdout)["kept"] == whole.kept
    assert (folder / "rounds" / "1.jsonl").stat().st_mtime_ns == labelled
    for number in range(2):
        assert same(*(weights(each / "rounds" / str(number)) for each in (whole.folder, folder)))
    with pytest.raises(ConfigError, match=r"confidence was 0\.6, is 0\.7"):
        self_train(ClassifyRun(**(settings | {"output": folder, "confidence": 0.7})), resume=True)


def test_consistency_counts_the_passes_that_agree(settings: dict[str, Any]) -> None:
    task = ClassifyTask.open(ClassifyRun(**settings, bf16=False, selection="consistency", passes=4, dropout=0.3), None)
    found = task.unlabeled().rows
    state = torch.get_rng_state()
    guesses = task.guess(found)
    assert torch.equal(torch.get_rng_state(), state)
    assert not task.model.training
    assert {guess.confidence for guess in guesses} <= {0.5, 0.75, 1.0}
    assert task.guess(found) == guesses

    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    task.config = task.config.model_copy(update={"dropout": 0.0})
    with pytest.raises(ConfigError, match="neither the base nor the adapter drops"):
        task.guess(found)


def test_the_surest_of_each_label_are_chosen_in_their_order() -> None:
    sure = [("a", 0.9), ("b", 0.99), ("a", 0.95), ("a", 0.97), ("b", 0.5)]
    guesses = [Guess({"text": str(i)}, label, value) for i, (label, value) in enumerate(sure)]
    assert [guess.row["text"] for guess in confident(guesses, 0.9)] == ["0", "1", "2", "3"]
    assert [guess.row["text"] for guess in confident(guesses, 0.9, per_label=2)] == ["1", "2", "3"]


def test_what_cannot_be_is_told(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give them by eval"):
        ClassifyRun(**(settings | {"eval": None, "eval_share": 0.5}))
    with pytest.raises(ConfigError, match="one run learns labelled rows alone"):
        run(ClassifyRun(**settings))
    with pytest.raises(ConfigError, match="needs unlabelled data"):
        self_train(ClassifyRun(**(settings | {"unlabeled": None})))
    with pytest.raises(ConfigError, match=r"the task 'text' has no setting 'unlabeled'; it belongs to .*'classify'"):
        RunConfig.from_dict({"train": "a", "output": "b", "unlabeled": "c"})
    with pytest.raises(DataError, match="no data file or folder"):
        self_train(ClassifyRun(**(settings | {"train": "/nowhere.jsonl"})))
    assert not Path(settings["output"]).exists()


def test_the_command_shows_each_round_and_the_verdict(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(ClassifyRun(**settings).to_yaml())
    done = CliRunner().invoke(app, ["train", str(path), "--rounds", "1"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "labelled alone" in done.stdout
    assert "gain" in done.stdout
    assert "round 1 of 1: " in done.stderr
    assert "1 left out, since they are evaluated" in done.stderr
