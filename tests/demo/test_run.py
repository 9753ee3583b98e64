"""The demo from end to end, on few rows: it trains, compares, switches, merges and restores."""

from pathlib import Path

from typer.testing import CliRunner

from weft.cli import app


def test_the_demo_does_all_that_it_says(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["demo", "--output", str(tmp_path / "out"), "--rows", "32"], env={"COLUMNS": "140"}
    )
    assert result.exit_code == 0, result.output
    assert "bit for bit what it was before" in result.output
    assert "word for word those of the unmerged model" in result.output
    for task in ("summarize", "name"):
        run = tmp_path / "out" / task
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
        assert (run / "loss.png").is_file()
