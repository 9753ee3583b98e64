"""Writes ``docs/results.md`` and its pictures from what `weft compare` found.

    python -m benchmarks.results

Each ``results.json`` of a comparison is kept as ``benchmarks/results/compare/NAME.json``. Nobody edits the page by
hand: a test holds it to the data.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from benchmarks.pictures import FONT
from weft.compare.methods import BASE
from weft.compare.report import draw, interval, markdown, setting, table
from weft.compare.results import Results, Row
from weft.compare.verdict import FULL, LORA, remarks, sentences, size, verdict

FOLDER = Path(__file__).parent / "results" / "compare"
DOCS = Path(__file__).parent.parent / "docs"
PICTURES = "pictures/results"

TITLES = {
    "dialogsum": "Summaries of dialogues (DialogSum)",
    "e2e": "Restaurants in words (E2E)",
    "sst2": "Sentiment (SST-2)",
    "cola": "Acceptable sentences (CoLA)",
    "banking77": "Intents (Banking77)",
    "fsdd": "Spoken digits (FSDD)",
    "dreambooth": "A subject in pictures (DreamBooth)",
}
"""Names of comparisons, in the order of the page; others come behind them, under their own names."""

INTRODUCTION = """# Results

<!-- Written by `python -m benchmarks.results` from benchmarks/results/compare; do not edit. -->

What LoRA reaches on each task, beside the base alone, full fine-tuning and the small modules that the literature
compares it with. Every figure was measured by [`weft compare`](guides/compare.md): one budget for all methods of a
task, a sweep of learning rates for each, several seeds, and a process for each run. The page is made from the data in
[benchmarks/results/compare](../benchmarks/results).

±: half the width of the 95% interval of the mean over seeds, by Student's t. Checkpoint: the file of what was trained.
Peak memory: the most that a run's process held over what its imports take, evaluations included. Step: the mean
optimizer step; the machine had other work beside it, so take steps as rough. A method is *as good as the best* if its
mean lies in the best one's interval.
"""


def read(folder: Path) -> dict[str, Results]:
    """The comparisons of a folder by name, in the order of the page."""
    found = {path.stem: Results.load(path) for path in sorted(folder.glob("*.json"))}
    known = [name for name in TITLES if name in found]
    return {name: found[name] for name in (*known, *(name for name in found if name not in TITLES))}


def page(comparisons: Mapping[str, Results]) -> str:
    """The page, for these comparisons."""
    parts = [INTRODUCTION.strip()]
    if comparisons:
        parts += ["## At a glance", _overview(comparisons)]
    for name, results in comparisons.items():
        parts += _section(name, results)
    return "\n\n".join(parts) + "\n"


def _overview(comparisons: Mapping[str, Results]) -> str:
    heading = ("task", "metric", "base alone", "LoRA", "full fine-tuning", "LoRA's checkpoint", "of full's", "LoRA is")
    lines = []
    for name, results in comparisons.items():
        metric = results.deciding
        rows = {row.name: row for row in results.methods if results.metric in row.scores}
        lora, full = _chosen_lora(results), rows.get(FULL)
        whole = full is not None and full.checkpoint_bytes
        lines.append(
            (
                TITLES.get(name, name),
                metric.title,
                interval(metric, rows[BASE].scores[metric.key]) if BASE in rows else "",
                "" if lora is None else f"{interval(metric, lora.scores[metric.key])} ({lora.name})",
                "" if full is None else interval(metric, full.scores[metric.key]),
                "" if lora is None else size(lora.checkpoint_bytes),
                f"{lora.checkpoint_bytes / full.checkpoint_bytes:.2%}" if lora and full and whole else "",
                _standing(results, lora),
            )
        )
    return markdown([heading, *lines])


def _chosen_lora(results: Results) -> Row | None:
    """The smallest LoRA that is as good as the best method; else the best LoRA."""
    metric = results.deciding
    of_lora = [row for row in results.methods if row.name.partition("@")[0] == LORA and metric.key in row.scores]
    found = verdict(results)
    good = [row for row in (found.equals if found else ()) if row in of_lora]
    if good or not of_lora:
        return good[0] if good else None
    return (max if metric.greater_is_better else min)(of_lora, key=lambda row: row.scores[metric.key].mean)


def _standing(results: Results, lora: Row | None) -> str:
    found = verdict(results)
    if found is None or lora is None or found.best.scores[results.metric].half is None:
        return ""
    return "as good as the best" if lora in found.equals else f"behind {found.best.name}"


def _section(name: str, results: Results) -> list[str]:
    tried = ("method", *(f"{rate:g}" for rate in _rates(results)))
    metric = results.deciding
    lines = [
        (
            row.name,
            *("" if rate not in row.sweep else metric.shown(row.sweep[rate]) or "failed" for rate in _rates(results)),
        )
        for row in results.methods
        if row.sweep
    ]
    machine = ", ".join(f"{key} {value}" for key, value in results.machine.items() if value is not None)
    return [
        f"## {TITLES.get(name, name)}",
        setting(results),
        f"![{TITLES.get(name, name)}]({PICTURES}/{name}.svg)",
        markdown(table(results)),
        " ".join(sentences(results)),
        *remarks(results),
        f"Learning rates, and the {metric.title} on {results.eval} that chose among them:",
        markdown([tried, *lines]),
        *(["```\n" + results.command + "\n```"] if results.command else []),
        "Settings of the run: " + ", ".join(f"{key} {value}" for key, value in results.settings.items()) + ".",
        f"On {machine}.",
    ]


def _rates(results: Results) -> Sequence[float]:
    return sorted({rate for row in results.methods for rate in row.sweep})


def write(results: Path, docs: Path) -> None:
    """Writes the page and its pictures under `docs`."""
    comparisons = read(results)
    (docs / PICTURES).mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(FONT):
        for name, found in comparisons.items():
            draw(found, docs / PICTURES / f"{name}.svg")
    (docs / "results.md").write_text(page(comparisons), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the page of results.")
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder of results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write")
    arguments = parser.parse_args()
    write(arguments.results, arguments.docs)
