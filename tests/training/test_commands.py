"""weft train and weft eval, as a person runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from typer.main import get_command
from typer.testing import CliRunner, Result

import weft
from weft.cli import app
from weft.training import RunConfig
from weft.training.config import run_settings


@pytest.fixture
def flags(base: Path, pairs: Path, tmp_path: Path) -> list[str]:
    values = {
        "base": base,
        "train": pairs,
        "output": tmp_path / "run",
        "rank": 2,
        "max-steps": 2,
        "tensorboard": "false",
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_setting_is_a_flag_with_its_description() -> None:
    """Flags are made from the tasks' settings; this keeps it so, and keeps the help whole."""
    fields: dict[str, FieldInfo] = dict(RunConfig.model_fields)
    for settings in (run_settings[task] for task in run_settings):
        if settings.__module__.startswith("weft."):  # other tests register tasks of their own, once flags are made
            fields |= settings.model_fields | fields
    text = " ".join(invoke("train", "--help").stdout.split())
    parameters = {parameter.name: parameter for parameter in get_command(app).commands["train"].params}  # type: ignore[attr-defined]
    for name, field in fields.items():
        assert f"--{name.replace('_', '-')}" in parameters[name].opts
        assert field.description is not None
        assert field.description in parameters[name].help
        assert f"--{name.replace('_', '-')}" in text
    assert set(parameters) - set(fields) == {"run", "resume", "overwrite", "tiny", "as_json", "help"} & set(parameters)


def test_train_prints_what_came_of_it(flags: list[str]) -> None:
    result = invoke("train", *flags, "--eval-share", "0.2")
    assert result.exit_code == 0, result.output
    assert "loss (nats per learned token)" in result.stdout
    assert "adapter" in result.stdout


def test_json_is_all_there_is_on_stdout(flags: list[str]) -> None:
    result = invoke("train", *flags, "--json", "--eval-share", "0.2")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["steps"] == 2
    assert Path(found["adapter"]).is_dir()


def test_flags_win_over_the_file(flags: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "rank: 3\nmax_steps: 1\ntargets: [q_proj, v_proj]\nlayers: [1]\nlearning_rate: 1e-3\noutput: x\ntrain: y\n"
    )
    result = invoke("train", file, *flags, "--rank-pattern", "v_proj=1", "--json")
    assert result.exit_code == 0, result.output
    adapter = weft.load(json.loads(result.stdout)["adapter"])
    assert {path: factors.rank for path, factors in adapter.factors.items()} == {
        "model.layers.1.self_attn.q_proj": 2, "model.layers.1.self_attn.v_proj": 1
    }  # fmt: skip
    saved = RunConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert (saved.max_steps, saved.learning_rate) == (2, 1e-3)


def test_several_values_and_settings_of_a_choice(flags: list[str], tmp_path: Path) -> None:
    init = "{name: pissa, num_power_iters: 2}"
    words = ["--targets", "q_proj,k_proj", "--targets", "re:.*v_proj", "--layers", "0-1", "--init", init]
    result = invoke("train", *flags, *words, "--batching", "random", "--bf16", "false")
    assert result.exit_code == 0, result.output
    saved = RunConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert saved.targets == ("q_proj", "k_proj", "re:.*v_proj")
    assert saved.layers == (0, 1)
    assert saved.lora().init == weft.PiSSA(2)
    assert saved.batching == "random"
    assert saved.bf16 is False


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("rnak: 2\n", [], "unknown setting 'rnak'; did you mean 'rank'"),
        ("rank: 2\n", ["--schedule", "wild"], "schedule: expected 'constant', 'linear' or 'cosine', found 'wild'"),
        ("rank: 2\n", [], "the setting 'output' is missing"),
        ("output: .\ntrain: none.jsonl\n", ["--layers", "a"], "layers: expected indices such as 0,1 or 4-7, found 'a'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path, text: str, words: list[str], message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    result = invoke("train", tmp_path / "run.yaml", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_resume_takes_a_folder_or_the_file(flags: list[str], tmp_path: Path) -> None:
    assert invoke("train", *flags).exit_code == 0
    folder = tmp_path / "run"
    before = (folder / "metrics.jsonl").read_text()
    assert "add --resume" in invoke("train", folder).stderr
    for words in (["--resume", folder], [folder / "config.yaml", "--resume"]):
        result = invoke("train", *words)
        assert result.exit_code == 0, result.output
        assert (folder / "metrics.jsonl").read_text() == before
    assert "rank was 2, is 1" in invoke("train", "--resume", folder, "--rank", "1").stderr
    assert "it has no config.yaml" in invoke("train", "--resume", tmp_path).stderr


def test_eval_compares_the_base_with_its_adapters(flags: list[str], base: Path, pairs: Path, tmp_path: Path) -> None:
    assert invoke("train", *flags, "--learning-rate", "0.05").exit_code == 0
    run, adapter = tmp_path / "run", tmp_path / "run" / "adapter"
    words = ["--base", base, "--data", pairs, "--generate-rows", "2", "--max-new-tokens", "4"]
    result = invoke("eval", *words, "--adapter", run, "--adapter", adapter, "--json")
    assert result.exit_code == 0, result.output
    plain, first, second = json.loads(result.stdout)["results"]
    assert (plain["adapter"], first["adapter"], second["adapter"]) == (None, str(run), str(adapter))
    assert first["loss"] == second["loss"] < plain["loss"]
    assert plain["generated_rows"] == 2
    text = invoke("eval", *words, "--adapter", run).stdout
    assert f"{first['loss']:.4f}" in text
    assert f"{plain['loss']:.4f}" in text


def test_eval_names_what_is_wrong(base: Path, pairs: Path, tmp_path: Path) -> None:
    def error(*words: Any) -> str:
        result = invoke("eval", "--base", base, *words)
        assert result.exit_code == 2
        return result.stderr

    assert "there is no data file" in error("--data", tmp_path / "none.jsonl")
    assert "more than the base's context" in error("--data", pairs, "--max-length", "97")
    assert "nothing" in error("--data", pairs, "--adapter", tmp_path / "nothing")
