"""weft plan of a run: its adapter and its memory."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from weft.cli import app


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {base}\ntrain: none.jsonl\noutput: {tmp_path / 'out'}\nrank: 2\nbatch_size: 4\n")
    return path


def plan(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, words)])


def test_a_run_is_planned_without_its_data(run: Path, base: Path, tmp_path: Path) -> None:
    result = plan(run, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    memory = found["memory"]
    assert (found["base"], memory["device"], memory["dtype"]) == (str(base), "cpu", "float32")
    assert memory["batch"] == [4, 96]  # the base's context
    assert memory["adapter"] == 4 * found["parameters"]
    assert memory["total"] > memory["weights"] + memory["activations"] > 0
    assert not (tmp_path / "out").exists()
    text = plan(run).stdout
    assert "memory on cpu, base in float32, batch of 4 x 96:" in text
    assert "self_attn.q_proj" in text


def test_fewer_rows_and_recomputing_take_less(run: Path) -> None:
    def total(more: str) -> int:
        changed = run.with_name("other.yaml")
        changed.write_text(run.read_text() + more)
        return int(json.loads(plan(changed, "--json").stdout)["memory"]["activations"])

    assert total("max_length: 48\n") < 0.6 * total("")
    assert total("gradient_checkpointing: true\n") < 0.6 * total("")


def test_a_run_is_planned_on_its_stand_ins(run: Path) -> None:
    found = json.loads(plan(run, "--tiny", "--json").stdout)
    assert Path(found["base"], "config.json").is_file()
    assert found["memory"]["batch"][0] == 2


def test_mistakes_are_named(run: Path) -> None:
    result = plan(run, "--rank", "4", "--targets", "q_proj")
    assert result.exit_code == 2
    assert "--rank, --targets: the run's file describes its adapter" in " ".join(result.stderr.split())
    result = plan("bundled", "--tiny")
    assert result.exit_code == 2
    assert "name its YAML file" in " ".join(result.stderr.split())


def test_with_its_data_the_longest_row_and_the_distance_count(run: Path, pairs: Path) -> None:
    run.write_text(run.read_text().replace("none.jsonl", str(pairs)))
    found = json.loads(plan(run, "--data", "--json").stdout)
    assert found["memory"]["batch"][1] < 96
    assert found["distance"]["rows"] == 20
    assert [each["setting"] for each in found["distance"]["advice"]] == ["rank", "learning_rate", "epochs"]
    text = plan(run, "--data").stdout
    assert "distance of the data from the base:" in text
    assert "advice: rank" in text
