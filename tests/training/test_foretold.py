"""What a run says before it starts, and what stays of it."""

from pathlib import Path

from rich.console import Console

from weft.tasks import TextRun
from weft.training import run


def test_memory_and_distance_are_said_and_the_distance_is_kept(base: Path, pairs: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    config = TextRun(base=str(base), train=str(pairs), output=tmp_path / "run", rank=2, max_steps=1, tensorboard=False)
    result = run(config, console=console)
    said = console.export_text()
    assert said.index("memory on cpu") < said.index("distance of the data from the base") < said.index("training")
    assert result.distance is not None
    assert result.to_dict()["distance"]["rows"] == 20
    card = (tmp_path / "run" / "README.md").read_text()
    assert "## Data and base" in card
    assert f"- base loss over 20 rows: {result.distance.median:.2f} nats" in card
    again = run(config.model_copy(update={"output": tmp_path / "again"}))  # the same without anybody looking
    assert again.distance == result.distance
    assert (tmp_path / "again" / "metrics.jsonl").read_text() == (tmp_path / "run" / "metrics.jsonl").read_text()
