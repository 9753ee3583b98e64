"""A comparison on a tiny base: real runs, in this process but for one."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folder import lines
from transformers import LlamaForCausalLM

import weft
from compare.runs import Here, Made
from weft.compare import Comparison, compare
from weft.compare.comparison import in_fresh_process
from weft.compare.job import Job
from weft.compare.report import write
from weft.compare.results import Results
from weft.errors import ConfigError, TrainingError
from weft.tasks import evaluate
from weft.training import load_base, load_text


def again(made: Made, **changes: Any) -> Comparison:
    settings: dict[str, Any] = {
        "config": made.config, "methods": ["lora", "full"], "output": made.comparison.folder, "rates": {"": [1e-2]},
        "seeds": 2, "test": str(made.test), "resume": True, "runner": Here(),
    }  # fmt: skip
    return compare(**(settings | changes))


def test_every_method_runs_with_every_seed(made: Made) -> None:
    names = [
        "base", "lora@2-rate-0.01-seed-1", "lora@2-rate-0.01-seed-2", "bitfit-rate-0.01-seed-1",
        "full-rate-0.01-seed-1", "full-rate-0.01-seed-2",
    ]  # fmt: skip
    assert made.done == names
    lora, _, full = made.comparison.sweeps
    assert lora.runs[0].eval != lora.runs[1].eval  # another seed is another run
    assert {run.steps for run in (*lora.runs, *full.runs)} == {4}
    assert all(run.eval["loss"] < made.comparison.base.eval["loss"] for run in (*lora.runs, *full.runs))


def test_the_figures_are_those_of_what_was_saved_on_the_test_rows(made: Made) -> None:
    loaded = load_base(made.config.base)
    test = load_text(str(made.test), loaded.tokenizer)
    assert made.comparison.base.final["loss"] == pytest.approx(evaluate(loaded.model, loaded.tokenizer, test).loss)
    adapter = made.comparison.folder / "runs" / "lora@2-rate-0.01-seed-2" / "adapter"
    weft.attach(loaded.model, weft.load(adapter))
    row = Results.of(made.comparison).methods[1]
    assert row.scores["loss"].values[1] == pytest.approx(evaluate(loaded.model, loaded.tokenizer, test).loss)
    assert row.checkpoint_bytes == (adapter / "adapter_model.safetensors").stat().st_size
    assert row.trainable == sum(f.A.numel() + f.B.numel() for f in weft.load(adapter).factors.values())


def test_full_fine_tuning_is_a_whole_model(made: Made) -> None:
    size = sum(parameter.numel() for parameter in LlamaForCausalLM.from_pretrained(made.config.base).parameters())
    full = Results.of(made.comparison).methods[-1]
    assert (full.trainable, full.share) == (size, 1.0)
    assert 4 * size < full.checkpoint_bytes < 4 * size + 4096  # float32, and the file's heading
    run = made.comparison.folder / "runs" / "full-rate-0.01-seed-1"
    assert lines(run)[0]["eval_loss"] == made.comparison.base.eval["loss"]
    assert not list(run.glob("model*"))  # as large as the base, and measured


def test_a_method_that_cannot_be_says_why_and_stops_nothing(made: Made) -> None:
    row = Results.of(made.comparison).methods[2]
    assert (row.name, row.rate, row.scores) == ("bitfit", None, {})
    assert len(row.failed) == 1
    assert "bias" in row.failed[0]


def test_what_is_written(made: Made) -> None:
    found = Results.of(made.comparison)
    write(found, made.comparison.folder)
    folder = made.comparison.folder
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert Results.load(folder / "results.json") == found
    text = (folder / "README.md").read_text()
    full = found.methods[-1].scores["loss"]
    assert f"| full | {full.mean:.4f} ± {full.half:.4f} |" in text
    assert "eval.jsonl chose learning rates and steps; the figures are from test.jsonl" in text
    assert "bitfit: " in text
    assert str(folder.parent) not in text + (folder / "results.json").read_text()  # where files stood is not told


def test_resuming_does_only_what_is_missing(made: Made) -> None:
    runner = Here()
    shutil.copytree(made.comparison.folder, made.comparison.folder.with_name("more"), dirs_exist_ok=True)
    more = again(made, output=made.comparison.folder.with_name("more"), seeds=3, methods=["lora"], runner=runner)
    assert runner.done == ["lora@2-rate-0.01-seed-3"]
    assert [run.eval for run in more.sweeps[0].runs[:2]] == [run.eval for run in made.comparison.sweeps[0].runs]
    assert more.seeds == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": False}, "holds something already; go on with --resume"),
        ({"test": None}, r"was made with other settings \(test\)"),
        ({"metric": "rouge_9"}, r"there is no 'rouge_9' among what these settings find \(loss, perplexity"),
        ({"seeds": 0}, "seeds: expected at least 1, found 0"),
        ({"rates": {"dora": [1e-3]}}, "rates: 'dora' is none of the methods"),
        ({"rates": {"": [0.0]}}, "rates: expected learning rates such as 1e-4,1e-3"),
    ],
)
def test_what_cannot_be_compared(made: Made, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        again(made, **changes)


def test_another_budget_is_another_comparison(made: Made) -> None:
    with pytest.raises(ConfigError, match=r"was made with other settings \(max_steps\); choose another folder"):
        again(made, config=made.config.with_settings({"max_steps": 5}))


def test_held_out_rows_must_be_the_same_for_every_seed(made: Made) -> None:
    shares = made.config.with_settings({"eval": None, "eval_share": 0.2})
    with pytest.raises(ConfigError, match="give eval, a file; eval_share would hold out other rows with each seed"):
        again(made, config=shares)


def test_a_process_of_its_own_finds_the_same(made: Made, tmp_path: Path) -> None:
    job = Job("lora", "adapter", made.comparison.sweeps[0].config, str(made.test))
    job = dataclasses.replace(job, config=job.config.with_settings({"output": tmp_path / "run"}))
    found = in_fresh_process(job, tmp_path)
    here = made.comparison.sweeps[0].runs[0]
    assert found.eval["loss"] == pytest.approx(here.eval["loss"], rel=1e-5)
    assert found.final["loss"] == pytest.approx(here.final["loss"], rel=1e-5)
    assert 0 < found.peak_bytes < 500e6  # what the imports take is not in it


def test_a_process_that_dies_is_one_message(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(
        TrainingError, match="the process of lora ended with 1; what was finished is kept, and --resume"
    ):
        in_fresh_process(Job("lora", "adapter", made.config, None), tmp_path)


def test_a_base_that_cannot_be_evaluated_stops_all(made: Made, tmp_path: Path) -> None:
    config = made.config.with_settings({"eval": "none.jsonl"})
    with pytest.raises(TrainingError, match="the base cannot be evaluated: there is no data file"):
        again(made, config=config, output=tmp_path / "new")
