"""LoraHub on tasks held out: adapters of other tasks, weighted on a few examples of a new one.

    python -m benchmarks.lorahub TASKS [--work FOLDER] [--held-out NAME ...] [--results FOLDER]
    python -m benchmarks.lorahub --table

TASKS is a folder with a JSONL file for each task, of prompts and completions. An adapter is trained on each task, and
then each one, or those named, is held out: a search weights the adapters of the others on 5 and on 20 of its examples,
two draws of each, and is measured on 100 rows that nothing was chosen by. The table is made from the results.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers.utils import logging

import weft
from benchmarks.harness import Case, measured
from benchmarks.records import RESULTS, Figures, Row, append, newest
from weft.data.text import TextDataset, context_length, load_text
from weft.model.weighted import weighted
from weft.tasks import TextRun
from weft.training import Base, Composition, WeightSearch, load_base, run, search_weights
from weft.training.lorahub import Losses
from weft.training.row_scores import RowScorer
from weft.training.weight_search import Trial, search

BENCHMARK = "lorahub"
RANK, STEPS, LEARNING_RATE = 16, 100, 2e-3
TRAIN_ROWS, FEWEST_TRAIN_ROWS, HELD_OUT_ROWS = 300, 100, 100
EXAMPLES, DRAWS = (5, 20), 2
RESCALED = WeightSearch(budget=14)


@dataclass(frozen=True)
class Task:
    """One task's files: no row is in two of them.

    Attributes:
        name: the task's.
        train: at most 300 rows.
        examples: 40 rows; each draw has 20 of its own, and a search sees the first few of these.
        held_out: 100 rows.
    """

    name: str
    train: Path
    examples: Path
    held_out: Path


def split(rows: Path, folder: Path) -> Task:
    """The rows of a task, shuffled by a seed, in three files."""
    lines = rows.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    rest, held_out = lines[:-HELD_OUT_ROWS], lines[-HELD_OUT_ROWS:]
    pool = DRAWS * max(EXAMPLES)
    parts = {"train": rest[:-pool][:TRAIN_ROWS], "examples": rest[-pool:], "held_out": held_out}
    files = {part: folder / f"{rows.stem}.{part}.jsonl" for part in parts}
    for part, own in parts.items():
        files[part].write_text("\n".join(own) + "\n", encoding="utf-8")
    return Task(rows.stem, **files)


def adapter_of(task: Task, folder: Path, steps: int) -> Path | None:
    """The folder of the task's adapter, trained unless it is there; None if the task has too few rows."""
    if len(task.train.read_text(encoding="utf-8").splitlines()) < FEWEST_TRAIN_ROWS:
        return None
    output = folder / task.name
    if not (output / "adapter").is_dir():
        config = TextRun(
            output=output,
            train=str(task.train),
            rank=RANK,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            tensorboard=False,
        )
        run(config)
    return output / "adapter"


def measure(task: Task, adapters: dict[str, Path], examples: int) -> Figures:
    """The losses of everything there is to compare, one figure a draw of the examples."""
    base = load_base("bundled")
    rows, held_out = (
        load_text(file, base.tokenizer, max_length=context_length(base.model))
        for file in (task.examples, task.held_out)
    )
    loaded = {name: weft.load(path) for name, path in adapters.items() if name != task.name}
    figures: Figures = {}
    for draw in range(DRAWS):
        start = draw * max(EXAMPLES)
        chosen = TextDataset(rows.examples[start : start + examples])
        single = rescaled(base, loaded, chosen, held_out)
        for variant, quantities in _figures(search_weights(base, loaded, chosen, held_out), single).items():
            for quantity, value in quantities.items():
                figures.setdefault(variant, {}).setdefault(quantity, []).append(value)
    return figures


def rescaled(base: Base, adapters: Mapping[str, weft.Adapter], examples: TextDataset, held_out: TextDataset) -> Losses:
    """Of one adapter at a weight of its own: both chosen by the examples, with the same search.

    What a combination gains over this is not the scaling of an adapter that is too strong or too weak.
    """
    with weighted(base.model, list(adapters.values())) as together:
        scorer = RowScorer(base.model, base.tokenizer, examples)

        def at(place: int, weight: float) -> None:
            together.set([weight if i == place else 0.0 for i in range(len(adapters))])

        def best(place: int) -> Trial:
            def loss(weights: Sequence[float]) -> float:
                at(place, weights[0])
                return scorer.scores().mean_loss

            return search(loss, 1, RESCALED).best

        place, found = min(((i, best(i)) for i in range(len(adapters))), key=lambda each: each[1].objective)
        at(place, found.weights[0])
        return Losses(found.loss, RowScorer(base.model, base.tokenizer, held_out).scores().mean_loss)


def _figures(found: Composition, rescaled: Losses) -> dict[str, dict[str, float]]:
    """Variant -> quantity -> its figure. The best single adapter is the best on the rows that it is measured on."""
    on_examples, on_held_out = found.best_singles
    assert on_held_out is not None
    chosen, best = found.singles[on_examples].held_out, found.singles[on_held_out].held_out
    losses = {
        "base": found.base,
        "equal weights": found.equal,
        "single, rescaled": rescaled,
        "combination": found.combination,
    }
    figures = {
        name: {"loss_examples": each.examples, "loss_held_out": each.held_out or 0.0} for name, each in losses.items()
    }
    assert chosen is not None
    assert best is not None
    figures["single, by the examples"] = {
        "loss_examples": found.singles[on_examples].examples,
        "loss_held_out": chosen,
    }
    figures["single, by the held-out rows"] = {
        "loss_examples": found.singles[on_held_out].examples,
        "loss_held_out": best,
    }
    figures["weights"] = dict(found.weights)
    return figures


def cases(tasks: Path, work: Path, names: Sequence[str], steps: int = STEPS) -> Iterator[Case]:
    """Each task held out, with each number of examples."""
    for folder in ("rows", "runs"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    found = [split(rows, work / "rows") for rows in sorted(tasks.glob("*.jsonl"))]
    adapters = {task.name: path for task in found if (path := adapter_of(task, work / "runs", steps)) is not None}
    for task in found:
        if names and task.name not in names:
            continue
        for examples in EXAMPLES:
            setting = {"held out": task.name, "examples": examples, "adapters": len(adapters.keys() - {task.name})}

            def case(task: Task = task, examples: int = examples) -> Figures:
                return measure(task, adapters, examples)

            yield Case(BENCHMARK, setting, case)


def table(rows: Sequence[Row]) -> str:
    """Losses on the held-out rows in Markdown, a line for each case: means over the draws."""
    variants = ("base", "equal weights", "single, by the held-out rows", "single, rescaled", "combination")
    headings = (
        *("held out", "examples", "base", "equal weights", "best single", "one, rescaled", "combination"),
        *("gain", "gain on the examples"),
    )
    lines = [headings, ("---",) * len(headings)]
    for row in rows:
        losses = [_mean(row.figures[variant]["loss_held_out"]) for variant in variants]
        seen = [_mean(row.figures[name]["loss_examples"]) for name in ("single, by the examples", "combination")]
        figures = [*(f"{loss:.3f}" for loss in losses), f"{losses[2] - losses[-1]:+.3f}", f"{seen[0] - seen[1]:+.3f}"]
        lines.append((str(row.setting["held out"]), str(row.setting["examples"]), *figures))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Trains, searches and keeps what was found; or shows it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="?", type=Path, help="the folder of tasks")
    parser.add_argument("--work", type=Path, help="where adapters are kept, and found again; default: nowhere")
    parser.add_argument("--held-out", nargs="*", default=[], help="the tasks to hold out; default: each in turn")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--table", action="store_true", help="measure nothing; show the newest results")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([row for row in newest(arguments.results) if row.benchmark == BENCHMARK]), end="")
        return
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        for row in measured(cases(arguments.tasks, work, arguments.held_out), Console()):
            append(row, arguments.results)


if __name__ == "__main__":
    main()
