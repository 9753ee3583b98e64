"""The pictures of the page, drawn from the data."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.records import Row
from benchmarks.targets import DROPOUTS

COLORS = {
    "weft": "#0f766e",
    "weft, merged": "#5eead4",
    "peft": "#c2410c",
    "peft, best settings": "#fdba74",
    "loralib": "#a8a29e",
    "full fine-tuning": "#57534e",
    "limit": "#1c1917",
}
FONT = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "weft", "font.family": "sans-serif"}

Bars = Mapping[str, Mapping[str, float]]
"""Group -> variant -> height."""


def draw(rows: Sequence[Row], folder: Path) -> list[str]:
    """Draws the pictures that there is data for, and returns their names."""
    pictures: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
        "step": _steps,
        "saved": _saved,
        "train": _train,
        "load": _loads,
        "generate": _generate,
    }
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(FONT):
        for name, picture in pictures.items():
            figure = picture(rows)
            if figure is None:
                continue
            FigureCanvasSVG(figure)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            drawn.append(name)
    return drawn


def _steps(rows: Sequence[Row]) -> Figure | None:
    """Forward and backward over the limit, and the whole step over full fine-tuning, by size and dropout."""
    panels: dict[str, Bars] = {}
    for benchmark, other, title in (
        ("forward_backward", "limit", "forward and backward / limit"),
        ("step", "full fine-tuning", "whole step / full fine-tuning"),
    ):
        for dropout in DROPOUTS:
            chosen = [
                row for row in _main(rows, benchmark) if row.setting["dropout"] == dropout and row.has(other, "seconds")
            ]
            names = [name for name in ("weft", "peft", "loralib", "full fine-tuning") if name != other]
            panels[f"{title}, dropout {dropout:g}"] = {
                str(row.setting["model"]): {
                    name: row.ratio(name, other, "seconds") for name in names if row.has(name, "seconds")
                }
                for row in chosen
            }
    return _panels(panels, "times", columns=2)


def _saved(rows: Sequence[Row]) -> Figure | None:
    """Bytes saved over the limit."""
    bars = {
        str(row.setting["model"]): {
            name: row.ratio(f"{name}, dropout" if name != "full fine-tuning" else name, "limit", "saved_bytes")
            for name in ("weft", "peft", "full fine-tuning")
        }
        for row in _main(rows, "saved")
    }
    return _panels({"bytes saved for the backward pass / limit, dropout 0.05": bars}, "times")


def _train(rows: Sequence[Row]) -> Figure | None:
    """Label tokens a second, and peak memory, over peft at its defaults."""
    panels = {}
    for quantity, title in (
        ("label_tokens_per_second", "tokens with a label a second / peft"),
        ("peak_bytes", "peak memory over the loaded model / peft"),
    ):
        panels[title] = {
            f"{row.setting['base']}\n{row.setting['dtype']}\n{row.setting['data']}": {
                name: row.ratio(name, "peft", quantity)
                for name in ("weft", "peft, best settings")
                if row.has(name, quantity)
            }
            for row in rows
            if row.benchmark == "train"
        }
    return _panels(panels, "times", columns=2)


def _generate(rows: Sequence[Row]) -> Figure | None:
    """Seconds over the base's."""
    bars = {
        f"batch {row.setting['batch']}": {
            name: row.ratio(name, "base", "seconds") for name in ("weft", "weft, merged", "peft")
        }
        for row in rows
        if row.benchmark == "generate"
    }
    return _panels({"generating 64 tokens / base": bars}, "times")


def _loads(rows: Sequence[Row]) -> Figure | None:
    """Milliseconds to load and to switch, by adapters loaded."""
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    empty = True
    for number, (benchmark, title) in enumerate((("load", "load one more adapter"), ("switch", "switch adapters"))):
        axes = figure.add_subplot(1, 2, number + 1)
        chosen = sorted((row for row in rows if row.benchmark == benchmark), key=lambda row: row.setting["loaded"])
        for name, label in (("limit", "read the file and copy"), ("weft", "weft"), ("peft", "peft")):
            points = [
                (row.setting["loaded"], 1e3 * row.median(name, "seconds")) for row in chosen if row.has(name, "seconds")
            ]
            if points:
                empty = False
                axes.plot(*zip(*points, strict=True), color=COLORS[name], marker="o", markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel="adapters loaded", ylabel="ms")
        axes.set_title(title, fontsize=9)
        axes.set_xticks([1, 10, 50], ["1", "10", "50"])
        axes.minorticks_off()
        _plain(axes)
    _legend(figure)
    return None if empty else figure


def _main(rows: Sequence[Row], benchmark: str) -> list[Row]:
    """The rows in float32 at rank 8 on a CPU."""
    wanted = {"rank": 8, "dtype": "float32", "device": "cpu"}
    return [row for row in rows if row.benchmark == benchmark and wanted.items() <= row.setting.items()]


def _panels(panels: Mapping[str, Bars], label: str, columns: int = 1) -> Figure | None:
    """A panel of grouped bars each, with a line at 1; None if there are no bars."""
    if not any(panels.values()):
        return None
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.8 * columns if columns > 1 else 5.6, 2.5 * lines + 0.3), layout="constrained")
    for number, (title, bars) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        names = list(dict.fromkeys(name for group in bars.values() for name in group))
        width = 0.8 / max(1, len(names))
        for place, name in enumerate(names):
            heights = [(i, group[name]) for i, group in enumerate(bars.values()) if name in group]
            left = [i + (place - (len(names) - 1) / 2) * width for i, _ in heights]
            drawn = axes.bar(left, [height for _, height in heights], 0.92 * width, color=COLORS[name], label=name)
            axes.bar_label(drawn, fmt="%.2f", fontsize=6, padding=1)
        axes.axhline(1, color=COLORS["limit"], linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(bars)), list(bars), fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(label)
        axes.margins(y=0.12)
        _plain(axes)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One for all panels, under them."""
    found = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=len(found) or 1, frameon=False, fontsize=8
    )


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
