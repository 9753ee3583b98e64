"""Draws the pictures of the guide to `weft inspect` from a run's adapter.

make demo
.venv/bin/python docs/guides/pictures/draw_inspect.py weft-demo/summarize/adapter
"""

import sys
from pathlib import Path

import weft
from weft.analysis.grid import energy_shares, short_names
from weft.analysis.inspect import inspect
from weft.analysis.plots.heat import heat_figure
from weft.analysis.plots.spectra import spectra_figure
from weft.analysis.plots.theme import svg

# The report's page gives its pictures their colors; on their own they bring them along.
STYLE = """<style>
svg { font-family: sans-serif; --ink: #1d2327; --muted: #667079; --line: #e3e1da; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e9e8; --muted: #9aa5a8; --line: #323a3e; } }
</style>"""


def main(path: str) -> None:
    numbers = inspect(weft.load(path))
    groups = numbers.by_name()
    kinds = {label: groups[name] for name, label in short_names(groups).items()}
    pictures = {
        "inspect-energy": svg(
            "energy", "share of the energy by block and kind of module",
            lambda: heat_figure(energy_shares(numbers), "share of all ‖D‖²", sums=True, form="{:.1%}"),
        ),
        "inspect-spectra": svg("spectra", "singular values of each module", lambda: spectra_figure(kinds)),
    }  # fmt: skip
    for name, text in pictures.items():
        Path(__file__).with_name(f"{name}.svg").write_text(text.replace("</title>", f"</title>{STYLE}", 1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
