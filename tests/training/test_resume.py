"""Law 6: a run killed at any moment and resumed ends in the same weights, bit for bit on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from weft.tasks import TextRun
from weft.training import run
from weft.training.checkpoint import latest, step_of


@pytest.fixture
def settings(base: Path, pairs: Path, tmp_path: Path) -> dict[str, Any]:
    """Sixteen steps, five to an epoch, with everything that draws at random or counts."""
    return {
        "base": str(base), "train": str(pairs), "eval": str(pairs), "output": tmp_path / "whole", "rank": 2,
        "dropout": 0.3, "init": "pissa", "learning_rate": 2e-2, "max_steps": 16, "batch_size": 2,
        "gradient_accumulation": 2, "log_every": 3, "eval_every": 1, "save_every": 4, "early_stopping": 50,
        "tensorboard": False,
    }  # fmt: skip


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kill_at(step: int, command: list[str], metrics: Path) -> None:
    """Runs a command, and kills it once it has logged a step."""
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while f'"step": {step},' not in (metrics.read_text() if metrics.is_file() else ""):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("changes", [{}, {"init": "kaiming", "nested": True}], ids=["pissa", "nested"])
def test_a_killed_run_resumed_is_the_run_uninterrupted(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings |= changes
    whole = run(TextRun(**settings)).folder
    killed = tmp_path / "killed"
    (tmp_path / "run.yaml").write_text(TextRun(**(settings | {"output": killed})).to_yaml())
    weft = [sys.executable, "-m", "weft", "train"]
    kill_at(7, [*weft, str(tmp_path / "run.yaml")], killed / "metrics.jsonl")
    assert not (killed / "adapter").exists()
    checkpoint = latest(killed / "checkpoints")
    assert checkpoint is not None
    assert 4 <= step_of(checkpoint) < 16

    again = subprocess.run(
        [*weft, "--resume", str(killed), "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert result["steps"] == 16
    expected, found = adapter(whole), adapter(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert lines(killed) == lines(whole)  # none twice, none missing, the same losses to the last digit
    assert result["before"]["loss"] == lines(whole)[0]["eval_loss"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"max_steps": 3, "save_every": 50, "eval": None, "early_stopping": None}
    whole = run(TextRun(**settings)).folder
    killed = TextRun(**(settings | {"output": tmp_path / "killed"}))
    run(killed)
    for path in (tmp_path / "killed" / "checkpoints" / "checkpoint-3").iterdir():
        path.unlink()  # what a kill in the middle of writing the first checkpoint leaves
    resumed = run(killed, resume=True).folder
    assert all(torch.equal(adapter(whole)[key], value) for key, value in adapter(resumed).items())
    assert lines(resumed) == lines(whole)


def test_a_run_that_had_stopped_early_is_not_trained_further(settings: dict[str, Any]) -> None:
    settings |= {"learning_rate": 1e-30, "early_stopping": 1, "save_every": 1}  # nothing improves after the first
    first = run(TextRun(**settings))
    logged = lines(first.folder)
    again = run(TextRun(**settings), resume=True)
    assert again.steps == first.steps == 2
    assert lines(again.folder) == logged


def test_there_must_be_a_run_to_resume(settings: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="there is no run to resume in"):
        run(TextRun(**settings), resume=True)
