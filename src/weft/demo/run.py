"""The demo: two adapters on one base, from data to merged weights, in a few minutes on a laptop's CPU.

It calls what `weft train` and the Python API call; nothing here is made for the demo but its data.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import weft
from weft.demo.stdlib import functions
from weft.demo.tasks import TASKS, Task
from weft.tasks import TextRun, generate_answers
from weft.tasks.language.generation import Decoding
from weft.training import RunResult, Sample, TextDataset, load_base, load_text, run
from weft.training.base import Base

_COMPARED = 24  # held-out rows whose answers are compared before and after a merge
_SHOWN, _WIDTH = 4, 60  # rows shown, and characters of each text
_ROUNDS = 30  # of timing


@dataclass(frozen=True)
class Trained:
    """One task, its held-out data, and what training it gave."""

    task: Task
    held_out: TextDataset
    result: RunResult

    @property
    def file_bytes(self) -> int:
        """The size of the adapter's tensors on disk."""
        return (self.result.adapter / "adapter_model.safetensors").stat().st_size


def demo(output: Path, most_rows: int) -> None:
    """Runs the demo, on `most_rows` rows a task; its data, runs and pictures stay under `output`.

    Raises:
        WeftError: a part of it failed; the message says which.
    """
    console = Console(highlight=False)
    started = time.monotonic()
    console.rule("[bold]weft demo[/]: one base model, two adapters")
    base = load_base("bundled")
    console.print("\n[bold]The plan[/] for the bundled base, as [cyan]weft plan bundled[/] shows it:\n")
    console.print(escape(str(weft.plan(base.model, weft.LoRAConfig()))), soft_wrap=True)
    rows = functions()
    held_out = sum(row.is_held_out for row in rows)
    console.print(
        f"\n[bold]The data[/]: {len(rows):,} documented functions of this Python's standard library; {held_out:,} "
        "of them are in modules on which nothing is trained, and serve for evaluation."
    )
    trained = []
    for task in TASKS:
        files = task.write(rows, output / "data", most_rows)
        console.print(f"\n[bold]Training [magenta]{task.name}[/][/] ({task.title}), as [cyan]weft train[/] does it:")
        result = run(_settings(task, files, output), overwrite=True, console=console)
        trained.append(Trained(task, load_text(files[1], base.tokenizer), result))
    console.print(_table(trained))
    for each in trained:
        weft.attach(base.model, weft.load(each.result.adapter), each.task.name)
    _show_switching(base, trained, console)
    _show_merging(base, trained[0], console)
    _show_next(trained, console)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s.")


def _settings(task: Task, files: tuple[Path, Path], output: Path) -> TextRun:
    return TextRun(
        base="bundled",
        output=output / task.name,
        train=str(files[0]),
        eval=str(files[1]),
        learning_rate=3e-3,
        batch_size=8,
        eval_every=100,
        save_every=100,
        generate_rows=100,
        max_new_tokens=24,
    )


def _table(trained: list[Trained]) -> Table:
    table = Table(
        "", *(each.task.name for each in trained), title="On modules that neither adapter saw, before -> after"
    )
    for heading, cell in (
        ("trained, share of the base", lambda each: f"{each.result.trainable:,}, {each.result.share:.2%}"),
        ("adapter file", lambda each: f"{each.file_bytes / 1e6:.2f} MB"),
        ("loss, nats a token", lambda each: _change(each.result, "loss", 3)),
        ("ROUGE-L", lambda each: _change(each.result, "rouge_l", 1)),
        ("chrF", lambda each: _change(each.result, "chrf", 1)),
        ("training rows, steps", lambda each: f"{each.result.train_data.rows:,}, {each.result.steps}"),
        ("time per step", lambda each: f"{1e3 * (each.result.seconds_per_step or 0):.0f} ms"),
    ):
        table.add_row(heading, *(cell(each) for each in trained))
    return table


def _change(result: RunResult, metric: str, digits: int) -> str:
    assert result.before is not None, result.folder
    assert result.after is not None, result.folder
    values = result.before.to_dict()[metric], result.after.to_dict()[metric]
    return f"{values[0]:.{digits}f} -> [bold]{values[1]:.{digits}f}[/]"


def _show_switching(base: Base, trained: list[Trained], console: Console) -> None:
    console.print("\n[bold]Switching[/]: both adapters sit on one resident base; a switch copies nothing.")
    names = [each.task.name for each in trained]
    start = time.perf_counter()
    for turn in range(_ROUNDS):
        weft.activate(base.model, names[turn % 2])
    microseconds = 1e6 * (time.perf_counter() - start) / _ROUNDS
    for each in trained:
        answers: list[list[Sample]] = []
        for name in (None, *names):
            with weft.active(base.model, name):
                answers.append(_answers(base, each, _SHOWN))
        table = Table("asked", "wanted", "base alone", *names, title=f"{each.task.title}, greedily")
        for row in zip(*answers, strict=True):
            asked = row[0].input.strip().splitlines()[0]
            table.add_row(*(escape(_short(text)) for text in (asked, row[0].reference, *(a.answer for a in row))))
        console.print(table)
    console.print(f"A switch of the whole model took {microseconds:.0f} microseconds.")


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}..."


def _show_merging(base: Base, trained: Trained, console: Console) -> None:
    console.print(f"\n[bold]Merging[/] {trained.task.name} into the weights, and out again:")
    model = base.model
    weft.activate(model, trained.task.name)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    unmerged = _answers(base, trained, _COMPARED)
    report = weft.merge(model)
    merged = _answers(base, trained, _COMPARED)
    same = sum(a.answer == b.answer for a, b in zip(unmerged, merged, strict=True))
    weft.unmerge(model)
    exact = all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    times = _forward_times(base, trained.task.name)
    console.print(f"  {report}")
    console.print(f"  answers: {same} of {_COMPARED} are word for word those of the unmerged model")
    console.print("  one forward: " + ", ".join(f"{name} {value:.1f} ms" for name, value in times.items()))
    console.print(f"  unmerged: every weight is {'bit for bit' if exact else '[red]NOT[/]'} what it was before")


def _forward_times(base: Base, name: str) -> dict[str, float]:
    """Median milliseconds of one forward pass over 256 tokens, the three ways taking turns."""
    ids = torch.arange(256).unsqueeze(0)
    times: dict[str, list[float]] = {"base": [], "merged": [], "unmerged": []}

    def timed(key: str) -> None:
        start = time.perf_counter()
        base.model(input_ids=ids, use_cache=False)
        times[key].append(1e3 * (time.perf_counter() - start))

    with torch.no_grad():
        for _ in range(_ROUNDS):
            with weft.active(base.model, None):
                timed("base")
            with weft.merged(base.model, name):
                timed("merged")
            with weft.active(base.model, name):
                timed("unmerged")
    return {key: statistics.median(values) for key, values in times.items()}


def _answers(base: Base, trained: Trained, rows: int) -> list[Sample]:
    return generate_answers(base.model, base.tokenizer, trained.held_out, rows, decoding=Decoding(24))


def _show_next(trained: list[Trained], console: Console) -> None:
    first = trained[0].result
    console.print("\n[bold]Loss curves[/]: " + ", ".join(str(each.result.folder / "loss.png") for each in trained))
    console.print("[bold]What to type next[/] (the command is in .venv/bin after `make demo`):")
    for line in (
        f"weft inspect {first.adapter}",
        f"weft generate --base bundled --adapter {first.adapter} --with-base --prompt 'def area(r):'",
        f"weft merge bundled {first.adapter} --output merged",
        "weft train --help",
    ):
        console.print(f"  [cyan]{escape(line)}[/]", soft_wrap=True)
