"""One look for every picture of a report, and SVG that takes its colors from the page around it.

Figures are drawn in marker colors; in the SVG each becomes a CSS variable, so that one picture serves a light page
and a dark one. Where a color must be fixed (in images), it is a middle tone that both backgrounds carry.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

T = TypeVar("T")

INK, MUTED, LINE = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = ("#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15", "#0a0b16")
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    **{color: f"series-{number}" for number, color in enumerate(SERIES, 1)},
}
POSITIVE, NEGATIVE = "#0f9d8c", "#e0673a"
"""The two ends of every scale, fixed."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "weft",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # names from files may hold dollar signs
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=SERIES),
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.bottom": False,  # labels, no marks
    "ytick.left": False,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def svg(name: str, description: str, draw: Callable[[], Figure]) -> str:
    """Draws a figure and returns it as an element for an HTML page: no prolog, no fixed size, colors by variables.

    Args:
        name: unlike that of any other picture of the page; plain letters.
        description: for readers who do not see it.
        draw: makes the figure.
    """
    with matplotlib.rc_context(_STYLE):
        figure = draw()
        FigureCanvasSVG(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # A style element would reach over the whole page; the page has these two lines itself.
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    # A hundredth of a point is finer than any screen.
    text = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
    text = re.sub(r"\s+", " ", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    width, height = (float(value) for value in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0])
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 4 / 3:.0f}px;min-width:{min(width, 560):.0f}px">'
        f"<title>{_escaped(description)}</title>"
    )
    return opening + text[head.end() :].strip()


def label_powers(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers, at 1, 2 and 5 times powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))


def shortened(text: str, length: int = 24) -> str:
    """A label of limited length, cut in its middle."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"


def thinned(items: Sequence[T], most: int) -> Sequence[T]:
    """Evenly chosen ones of many, so that a model of thousands of experts does not make a page of megabytes."""
    return items[:: max(1, -(-len(items) // most))]


def shades(values: Sequence[Sequence[float | None]], largest: float) -> NDArray[np.float64]:
    """Numbers as an RGBA image (rows, columns, 4): the more, the more opaque; negative ones in the other color."""
    array = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=np.float64)
    image = np.zeros((*array.shape, 4))
    strength = np.nan_to_num(np.clip(array / (largest or 1.0), -1, 1))
    image[..., :3] = np.where(strength[..., None] < 0, to_rgb(NEGATIVE), to_rgb(POSITIVE))
    image[..., 3] = np.abs(strength)
    return image


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
