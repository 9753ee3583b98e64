"""Writes ``docs/performance.md`` and its pictures from the newest result of each setting.

    python -m benchmarks.report

Nobody edits the page by hand: a test holds it to the data.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.models import SIZES
from benchmarks.pictures import draw
from benchmarks.records import RESULTS, Row, newest
from benchmarks.targets import TARGETS, Target

DOCS = Path(__file__).parent.parent / "docs"

INTRODUCTION = """# Performance

<!-- Written by `python -m benchmarks.report` from benchmarks/results; do not edit. -->

What weft costs, beside the limit, peft, loralib and full fine-tuning. Every figure here was measured, and is kept with
the machine and the versions in [benchmarks](../benchmarks); this page is made from that data.

**How to read it.** Variants take turns in one process, round after round, so that a machine whose speed drifts slows
them all alike. A ratio is the median over rounds of one variant's time over another's in the same round; trust ratios
more than times, which are medians. *The limit* is the frozen model's forward and the gradient of its embedded input: no
LoRA work at all, so nothing that trains an adapter in every layer can be faster. Every variant has the same adapted
layers, rank, alpha and optimizer (fused AdamW), and shares the same frozen weights.
"""

COMMANDS = {
    "forward_backward": "step",
    "step": "step",
    "saved": "step",
    "peak": "step",
    "layer": "layer",
    "decode": "layer",
    "attach": "attach",
    "load": "attach",
    "switch": "attach",
    "merge": "merge",
    "quantize": "quantize",
    "generate": "generate",
    "imports": "imports",
    "train": "train",
    "nested_ranks": "nested_ranks",
    "combine": "algebra",
    "algebra": "algebra",
    "extract": "extract",
    "library": "library",
}
"""Benchmark -> the module that measures it."""

_MODELS = list(SIZES)


def page(rows: Sequence[Row], pictures: Iterable[str]) -> str:
    """The page, for these results."""
    drawn = set(pictures)
    parts = [INTRODUCTION, _targets(rows)]
    for title, text, benchmarks, picture in _SECTIONS:
        tables = [_TABLES[benchmark](own) for benchmark in benchmarks if (own := _of(rows, benchmark))]
        if not tables:
            continue
        image = [f"![{title}](pictures/{picture}.svg)\n"] if picture in drawn else []
        parts += [f"## {title}\n\n{text}\n", *image, *tables]
    parts.append(_reproduce(rows))
    return "\n".join(parts)


def _targets(rows: Sequence[Row]) -> str:
    lines = [_target(target, rows) for target in TARGETS]
    met = sum(line[-1].startswith("met") for line in lines)
    heading = f"## Targets\n\n{met} of {len(lines)} are met. Each shows the setting that is furthest from its target.\n"
    return f"{heading}\n{_table(('what', 'target', 'found', ''), lines)}"


def _target(target: Target, rows: Sequence[Row]) -> tuple[str, str, str, str]:
    unit = f" {target.unit[0]}" if target.unit[0] else ""
    bound = f"at {'least' if target.at_least else 'most'} {target.bound:g}{unit}"
    findings = target.findings(rows)
    if not findings:
        return target.what, bound, "", "not measured"
    row, figure = findings[0]
    varied = [f"{key} {row.setting[key]}" for key, values in target.where.items() if len(values) > 1]
    where = f" ({', '.join(varied)})" if varied else ""
    missing = len(target.unmeasured(rows))
    verdict = "met" if target.is_met(figure) else "**not met**"
    number = f"{figure:.3g}" if figure < 1000 else f"{figure:,.0f}"
    return target.what, bound, f"{number}{unit}{where}", verdict + (f", {missing} not measured" if missing else "")


def _steps(rows: Sequence[Row]) -> str:
    """Ratios to the limit, and weft's to full fine-tuning and peft's to weft's."""
    lines = []
    for row in rows:
        over = [_ratio(row, name, "limit") for name in ("weft", "peft", "loralib", "full fine-tuning")]
        others = [_ratio(row, "weft", "full fine-tuning"), _ratio(row, "peft", "weft")]
        lines.append((*_setting(row), _time(row, "limit"), *over, *others))
    headings = ("model", "rank", "dtype", "dropout", "limit", "weft", "peft", "loralib", "full fine-tuning")
    title = "Forward and backward" if rows[0].benchmark == "forward_backward" else "The whole step"
    text = f"{title}: the limit's time, the others' ratios to it, and two more ratios:\n\n"
    return text + _table((*headings, "weft / full", "peft / weft"), lines)


def _memory(rows: Sequence[Row]) -> str:
    """MiB, for every variant."""
    quantity = "saved_bytes" if rows[0].benchmark == "saved" else "peak_bytes"
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [(*_setting(row), *(_mebibytes(row, name, quantity) for name in names)) for row in rows]
    what = {
        "saved_bytes": "MiB alive between the forward and the backward pass, without the model's own:",
        "peak_bytes": "The peak of memory in three steps over the loaded model, in MiB; a fresh process each:",
    }[quantity]
    return f"{what}\n\n{_table(('model', 'rank', 'dtype', *names), lines)}"


def _times(what: str) -> Callable[[Sequence[Row]], str]:
    """A table of medians, one column a variant."""

    def table(rows: Sequence[Row]) -> str:
        keys = list(rows[0].setting)
        shown = [key for key in keys if len({row.setting[key] for row in rows}) > 1] or keys
        names = list(dict.fromkeys(name for row in rows for name in row.figures))
        lines = [(*(str(row.setting[key]) for key in shown), *(_time(row, name) for name in names)) for row in rows]
        fixed = ", ".join(f"{key} {rows[0].setting[key]}" for key in keys if key not in shown)
        return f"{what}{f' ({fixed})' if fixed else ''}:\n\n{_table((*shown, *names), lines)}"

    return table


def _merge(rows: Sequence[Row]) -> str:
    lines = [
        (name, _time(row, name), f"{row.median(name, 'share_changed'):.2%}", _mebibytes(row, name, "undo_bytes"))
        for row in rows
        for name in row.figures
    ]
    setting = rows[0].setting
    what = f"{setting['layers']} layers of {setting['width']} x {setting['width']}:\n\n"
    return what + _table(("", "a cycle", "weights changed after all", "MiB held"), lines)


def _quantize(rows: Sequence[Row]) -> str:
    lines = [
        (
            str(row.setting["model"]),
            *(_mebibytes(row, name, "weight_bytes") for name in ("float32", "bfloat16", "8 bits")),
            _time(row, "float32"),
            _ratio(row, "8 bits", "float32"),
            f"{row.median('8 bits', 'rounding'):.2%}",
            f"{row.median('8 bits', 'lost_by_merging'):.0%}",
        )
        for row in rows
    ]
    headings = ("base", "weights in float32, MiB", "bfloat16", "8 bits", "a step on float32", "8 bits over float32")
    return _table((*headings, "rounding", "lost by merging"), lines)


def _train(rows: Sequence[Row]) -> str:
    lines = [
        (
            *(str(row.setting[key]) for key in ("base", "dtype", "data", "rows")),
            name,
            f"{row.median(name, 'label_tokens_per_second'):.1f}",
            f"{row.ratio(name, 'peft', 'label_tokens_per_second'):.2f}",
            _mebibytes(row, name, "peak_bytes"),
            f"{row.ratio(name, 'peft', 'peak_bytes'):.2f}",
            f"{row.median(name, 'loss_before'):.3f} -> {row.median(name, 'loss_after'):.3f}",
        )
        for row in rows
        for name in row.figures
    ]
    headings = (
        "base",
        "dtype",
        "data",
        "rows",
        "",
        "label tokens/s",
        "over peft",
        "peak MiB",
        "over peft",
        "held-out loss",
    )
    return _table(headings, lines)


def _errors(what: str) -> Callable[[Sequence[Row]], str]:
    """Time and relative error of every variant, one line each."""

    def table(rows: Sequence[Row]) -> str:
        keys = list(rows[0].setting)
        lines = [
            (
                *(str(row.setting[key]) for key in keys),
                name,
                _time(row, name),
                f"{row.ratio(name, 'weft', 'seconds'):,.0f}",
                f"{row.median(name, 'relative_error'):.6f}",
            )
            for row in rows
            for name in row.figures
        ]
        return f"{what}:\n\n{_table((*keys, '', 'time', 'over weft', 'relative error'), lines)}"

    return table


def _algebra(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [
        (name, *(cell for row in rows for cell in (_time(row, name), f"{row.median(name, 'peak_share'):.2f}")))
        for name in names
    ]
    headings = [cell for row in rows for cell in (str(row.setting["model"]), "peak / adapters")]
    what = "All modules of a model, and the peak of memory over the size of two adapters"
    return f"{what}:\n\n{_table(('', *headings), lines)}"


def _ranks(rows: Sequence[Row]) -> str:
    """The losses of every seed, a line for each rank."""
    tables = []
    for row in rows:
        base = _losses(row, "base", "loss_at_rank_0")
        names = [name for name in row.figures if name != "base"]
        lines = [
            (quantity.rpartition("_")[2], *(_losses(row, name, quantity) for name in names))
            for quantity in row.figures[names[0]]
        ]
        facts = ", ".join(f"{key} {value}" for key, value in row.setting.items())
        tables.append(f"{facts}; the base alone: {base}\n\n{_table(('rank', *names), lines)}")
    return "\n".join(tables)


def _losses(row: Row, name: str, quantity: str) -> str:
    return " / ".join(f"{loss:.3f}" for loss in row.figures[name][quantity])


def _library(rows: Sequence[Row]) -> str:
    lines = [(name, *(_time(row, name) for row in rows)) for name in rows[0].figures]
    return _table(("", *(f"{row.setting['adapters']:,} adapters" for row in rows)), lines)


def _reproduce(rows: Sequence[Row]) -> str:
    """The command of each benchmark, by the machine that its newest result comes from."""
    machines: dict[str, list[tuple[str, str, str]]] = {}
    for benchmark, module in COMMANDS.items():
        own = _of(rows, benchmark)
        last = max(own, key=lambda row: row.when, default=None)
        on, when = (f"On {_machine(last)}:", last.when[:10]) if last else ("Not measured yet:", "")
        machines.setdefault(on, []).append((benchmark, f"`python -m benchmarks.{module}`", when))
    text = """## Machine, versions, and how to reproduce

`make bench` measures everything, `make bench-quick` small settings of all but whole runs, in about a minute;
`python -m benchmarks.report` then writes this page. Each of the commands below takes `quick` too, and `--only TEXT` for
the settings that contain it; the training benchmark takes `--rows FILE.jsonl`, and without it trains on functions of
Python's standard library.
"""
    tables = (f"{on}\n\n{_table(('benchmark', 'command', 'measured'), lines)}" for on, lines in machines.items())
    return "\n".join((text, *tables))


def _machine(row: Row) -> str:
    m = row.machine
    versions = ", ".join(f"{name} {m[name]}" for name in ("torch", "transformers", "peft", "loralib") if m.get(name))
    place = m["gpu"] or f"{m['processor']}, {m['threads']} threads on {m['cores']} cores, {m['capability']}"
    return f"{place}; {m['system']}, Python {m['python']}, {versions}"


def _of(rows: Sequence[Row], benchmark: str) -> list[Row]:
    """A benchmark's rows, small models first."""

    def order(row: Row) -> tuple[object, ...]:
        model = str(row.setting.get("model", ""))
        numbers = [
            row.setting[key] for key in ("rank", "loaded", "batch", "tokens", "width", "out") if key in row.setting
        ]
        dtype = {"float32": 0}.get(str(row.setting.get("dtype", "float32")), 1)
        place = _MODELS.index(model) if model in _MODELS else -1
        return str(row.setting.get("device", "")), dtype, place, *numbers, row.setting.get("dropout", 0)

    return sorted((row for row in rows if row.benchmark == benchmark), key=order)


def _setting(row: Row) -> tuple[str, ...]:
    return tuple(str(row.setting[key]) for key in ("model", "rank", "dtype", "dropout") if key in row.setting)


def _ratio(row: Row, name: str, other: str) -> str:
    both = row.has(name, "seconds") and row.has(other, "seconds")
    return f"{row.ratio(name, other, 'seconds'):.2f}" if both else ""


def _time(row: Row, name: str) -> str:
    if not row.has(name, "seconds"):
        return ""
    seconds = row.median(name, "seconds")
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _mebibytes(row: Row, name: str, quantity: str) -> str:
    return f"{row.median(name, quantity) / 2**20:,.1f}" if row.has(name, quantity) else ""


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [tuple(headings), ("---",) * len(headings), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


_TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "forward_backward": _steps,
    "step": _steps,
    "saved": _memory,
    "peak": _memory,
    "train": _train,
    "nested_ranks": _ranks,
    "layer": _times("Forward and backward of one layer"),
    "decode": _times("One token through one layer, without gradients"),
    "attach": _times("Attach and detach, on the meta device"),
    "load": _times("Load one more adapter; the limit reads the file and copies its tensors"),
    "switch": _times("Make another adapter the active one"),
    "merge": _merge,
    "quantize": _quantize,
    "generate": _times("Greedy generation"),
    "imports": _times("A fresh interpreter that imports"),
    "combine": _errors("Combine two adapters of rank 16 at rank 16, per module"),
    "algebra": _algebra,
    "extract": _errors("Extract rank 16 from a dense change"),
    "library": _library,
}

_SECTIONS = (
    (
        "A training step",
        "All linear layers. Llamas of four sizes, every token learned, and the shape of MiniLM as a classifier. In "
        "bfloat16 peft runs under autocast, as transformers' Trainer runs it.",
        ("forward_backward", "step"),
        "step",
    ),
    ("Memory of a step", "What a forward pass keeps, and what a whole step takes.", ("saved", "peak"), "saved"),
    (
        "A whole run",
        "`weft train` against transformers' Trainer with peft: the same rows, optimizer steps, rank, alpha and "
        "learning rate, each run in a fresh process. The peer at its defaults, and at the best settings that its user "
        "can choose (rows of like length together). Peak memory is over the loaded model.",
        ("train",),
        "train",
    ),
    (
        "The rank after the training",
        "Held-out loss, nats per learned token, of adapters trained at each rank alone, of the truncated SVD of a "
        "plain run at the highest rank (`weft curve`), and of the prefixes of a nested run (`weft train --nested`). "
        "The same rows, steps, alpha and learning rate for all; one figure for each seed.",
        ("nested_ranks",),
        "",
    ),
    ("Attach, load, switch", "Adapters of rank 8 on all linear layers.", ("attach", "load", "switch"), "load"),
    ("Generate", "", ("generate", "decode"), "generate"),
    ("Merge and unmerge", "A cycle merges and undoes it: weft restores, peft subtracts.", ("merge",), ""),
    (
        "Bases in 8 bits",
        "Q(W) is the weight in 8 bits. Steps are forward and backward passes at rank 8, of 4 rows of 128 tokens. The "
        "rounding is ||Q(W) - W|| / ||W||. The last column says why a merge into 8 bits is refused: of a random change "
        "D of rank 8, with 2% of the norm of W, rounding the merged weight again would lose the share "
        "||Q(Q(W) + D) - (Q(W) + D)|| / ||D||.",
        ("quantize",),
        "",
    ),
    (
        "Adapters as values",
        "From the factors alone. peft's svd forms the dense sum and its full SVD; its defaults ask for all of the "
        "singular vectors, and the thin SVD is the best that its user can choose.",
        ("combine", "algebra", "extract"),
        "",
    ),
    (
        "A library",
        "Each search opens the library first; `similar` computes the cosine of the five nearest exactly. Commands are "
        "whole interpreters' lives.",
        ("library",),
        "",
    ),
    ("One layer", "", ("layer",), ""),
    ("Import", "All of weft's public names are fetched.", ("imports",), ""),
)
"""Title, text, benchmarks, picture."""


def write(results: Path, docs: Path) -> None:
    """Writes the page and its pictures under `docs`."""
    rows = newest(results)
    drawn = draw(rows, docs / "pictures")
    (docs / "performance.md").write_text(page(rows, drawn), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the page of results.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write")
    arguments = parser.parse_args()
    write(arguments.results, arguments.docs)
