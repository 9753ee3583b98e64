"""``weft compare``, on a comparison whose runs are all done, so that no process is started."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from compare.runs import Made
from weft.cli import app

Command = Callable[..., Result]


@pytest.fixture
def command(made: Made, tmp_path: Path) -> Command:
    """Runs the command that made the comparison, with further words."""
    (tmp_path / "run.yaml").write_text(made.config.with_settings({"max_steps": 999}).to_yaml())
    shutil.copytree(made.comparison.folder, tmp_path / "out")
    words = ["compare", tmp_path / "run.yaml", "--set", "max_steps=4", "--test", made.test, "-o", tmp_path / "out"]

    def run(*further: str) -> Result:
        return CliRunner().invoke(app, [*map(str, words), *further], env={"COLUMNS": "80"})

    return run


def test_it_shows_what_each_method_gains_and_costs(command: Command, tmp_path: Path) -> None:
    result = command("-m", "full,lora", "--rates", "1e-2", "--seeds", "2", "--resume")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["loss", "trained", "checkpoint", "peak", "memory", "step", "rate"] in rows
    assert [row[0] for row in rows if row and row[0] in ("base", "full", "lora@2")] == ["base", "full", "lora@2"]
    assert "5/5 lora@2-rate-0.01-seed-2: loss" in result.stderr
    assert "the figures are from test.jsonl" in " ".join(result.stdout.split())
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        "weft compare run.yaml --methods full,lora --rates 1e-2 --seeds 2 --test test.jsonl --set max_steps=4" in text
    )


def test_json_is_what_is_written(command: Command, tmp_path: Path) -> None:
    result = command(
        "-m", "lora", "--rates", "lora=1e-2", "--seeds", "1", "--metric", "token_accuracy", "--resume", "--json"
    )
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["metric"], found["seeds"]) == ("token_accuracy", [1])
    assert [row["name"] for row in found["methods"]] == ["base", "lora@2"]
    assert found["settings"]["max_steps"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "lorra"], "there is no method 'lorra'; did you mean 'lora'"),
        (["--ranks", "four"], "--ranks: expected whole numbers such as 1,4,16, found 'four'"),
        (["--rates", "full=small"], "--rates: expected numbers such as 1e-4,1e-3, found 'small'"),
        (["--set", "max_steps"], "--set: expected setting=value, such as max_steps=200, found 'max_steps'"),
        (["--set", "max_stepz=3"], "unknown setting 'max_stepz'; did you mean 'max_steps'"),
        ([], "holds something already; go on with --resume, or choose another folder"),
    ],
)
def test_one_message_for_what_cannot_be(command: Command, words: list[str], message: str) -> None:
    result = command(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())
