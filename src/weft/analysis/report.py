"""One HTML file with everything that was found out about an adapter: it needs no other file and no network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from weft.analysis.against_base import BaseComparison
from weft.analysis.grid import BlockGrid, block_grid, energy_shares, mean, short_names
from weft.analysis.inspect import AdapterNumbers, ModuleNumbers
from weft.analysis.plots.base import amplification_figure, intruder_figure
from weft.analysis.plots.heat import heat_figure
from weft.analysis.plots.likeness import depth_figure, grid_figure, overlap_figure, scale_figure
from weft.analysis.plots.run import run_figure
from weft.analysis.plots.spectra import energy_figure, saturation_figure, spectra_figure
from weft.analysis.plots.theme import svg
from weft.analysis.signs import Curves, Sign
from weft.analysis.similarity import Overlap
from weft.formats.atomic import staged_files

_ROWS = 1000
"""The table of modules ends here; `--json` has them all."""
_KINDS = 12
"""As many kinds of module, those with the most energy, get a panel in the pictures."""
_GRID_COLUMNS = 6


@dataclass(frozen=True)
class Subject:
    """One adapter of a report.

    Attributes:
        name: what it is called in the report.
        facts: label -> text, for the head of the page.
        parameters: how many numbers were trained.
        numbers: its numbers.
    """

    name: str
    facts: Mapping[str, str]
    parameters: int
    numbers: AdapterNumbers


@dataclass(frozen=True)
class Report:
    """What a report shows; everything that is not there is left out.

    Attributes:
        subject: the adapter that it is about.
        others: those that it is compared with.
        comparisons: its modules beside the base's weights.
        overlap: all adapters, each with each.
        curves: the losses of the run that trained it.
        signs: of over- and underfitting; None if nobody looked.
    """

    subject: Subject
    others: tuple[Subject, ...] = ()
    comparisons: tuple[BaseComparison, ...] = ()
    overlap: Overlap | None = None
    curves: Curves | None = None
    signs: tuple[Sign, ...] | None = None

    def save(self, path: Path) -> Path:
        """Writes the page, whole or not at all, and returns its path.

        Raises:
            FormatError: the disk did not take it; what was there before is there as it was.
        """
        text = self.html()
        with staged_files(path.parent, [path.name]) as folder:
            (folder / path.name).write_text(text, encoding="utf-8")
        return path

    def html(self) -> str:
        """The page."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["number"] = _number
        template = environment.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))
        numbers = self.subject.numbers
        compared = {c.path: c for c in self.comparisons}
        kinds = short_names([m.name for m in numbers.modules])
        return template.render(
            report=self,
            numbers=numbers,
            version=version("weft"),
            pictures=_Pictures(self),
            kinds=[_Kind.of(kinds[name], group, compared) for name, group in numbers.by_name().items()],
            modules=[(m, compared.get(m.path)) for m in numbers.modules[:_ROWS]],
            rescaled=any(m.magnitude is not None for m in numbers.modules),
            intruders=next((c.intruders for c in self.comparisons if c.intruders is not None), None),
            strongest=max((m.spectrum.norm for m in numbers.modules), default=0.0) or 1.0,
            subjects=(self.subject, *self.others),
        )


@dataclass(frozen=True)
class _Kind:
    """A line of the table of kinds: means over modules that differ only in their block."""

    name: str
    count: int
    shape: str
    rank: str
    norm: float
    stable_rank: float
    effective_rank: float
    rank_99: float
    saturation: float
    energy: float
    relative_norm: float | None
    amplification: float | None
    nbytes: int

    @classmethod
    def of(cls, name: str, group: Sequence[ModuleNumbers], compared: Mapping[str, BaseComparison]) -> "_Kind":
        spectra = [m.spectrum for m in group]
        beside = [compared[m.path] for m in group if m.path in compared]
        return cls(
            name,
            len(group),
            _only({f"{m.shape[0]} × {m.shape[1]}" for m in group}),  # noqa: RUF001  # the sign for the reader
            _only({str(m.rank) for m in group}),
            mean([s.norm for s in spectra]),
            mean([s.stable_rank for s in spectra]),
            mean([s.effective_rank for s in spectra]),
            mean([s.rank_99 for s in spectra]),
            mean([s.saturation for s in spectra]),
            sum(s.norm**2 for s in spectra),
            _mean_of(c.relative_norm for c in beside),
            _mean_of(c.amplification for c in beside),
            sum(m.nbytes for m in group),
        )


class _Pictures:
    """The page's pictures, each drawn when the template asks for it."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.numbers = report.subject.numbers
        groups = self.numbers.by_name()
        labels = short_names(groups)
        strongest = sorted(groups, key=lambda name: -sum(m.spectrum.norm**2 for m in groups[name]))[:_KINDS]
        self.kinds = {labels[name]: group for name, group in groups.items() if name in strongest}

    def energy(self) -> str:
        """The heat map of the energy."""
        return _picture(
            "energy", "share of the energy by block and kind of module",
            lambda: heat_figure(energy_shares(self.numbers), "share of all ‖D‖²", sums=True, form="{:.2%}"),
        )  # fmt: skip

    def rank_99(self) -> str:
        """The heat map of the ranks that matter."""
        return self._heat(
            "rank99",
            "directions that 99% of the energy needs",
            {m.path: m.spectrum.rank_99 for m in self.numbers.modules},
        )

    def spectra(self) -> str:
        """The singular values."""
        return _picture("spectra", "singular values of each module", lambda: spectra_figure(self.kinds))

    def cumulative(self) -> str:
        """How the energy adds up."""
        return _picture("cumulative", "cumulative energy over directions", lambda: energy_figure(self.kinds))

    def saturation(self) -> str:
        """How full the ranks are."""
        return _picture("saturation", "saturation of the rank by kind", lambda: saturation_figure(self.kinds))

    def run(self) -> str:
        """The losses."""
        curves = self.report.curves
        assert curves is not None
        return _picture("run", "training and held-out loss over steps", lambda: run_figure(curves))

    def relative(self) -> str:
        """The heat map of the norms relative to W."""
        values = {c.path: c.relative_norm for c in self.report.comparisons if c.relative_norm is not None}
        return self._heat("relative", "norm of the change over that of the weight", values, "{:.2%}")

    def amplified(self) -> str:
        """The heat map of the amplification."""
        values = {c.path: c.amplification for c in self.report.comparisons if c.amplification is not None}
        return self._heat("amplified", "amplification of what was there", values)

    def amplification(self) -> str:
        """The change against what was there."""
        norms = {m.path: m.spectrum.norm for m in self.numbers.modules}
        comparisons = self.report.comparisons
        return _picture(
            "amplification", "norm of the change against the weight in its directions",
            lambda: amplification_figure(comparisons, [norms[c.path] for c in comparisons]),
        )  # fmt: skip

    def intruders(self) -> str:
        """The cosines of the leading directions."""
        return _picture(
            "intruders", "largest cosine of each leading direction", lambda: intruder_figure(self.report.comparisons)
        )

    def intruder_counts(self) -> str:
        """The heat map of the intruders."""
        values = {c.path: float(c.intruders.count) for c in self.report.comparisons if c.intruders is not None}
        return self._heat("intrudercounts", "intruder dimensions", values, "{:g}")

    def overlap(self) -> str:
        """The matrices of all adapters."""
        overlap = self._overlap()
        return _picture(
            "overlap", "cosine and subspace similarity of every two adapters", lambda: overlap_figure(overlap)
        )

    def depths(self) -> list[tuple[str, str]]:
        """(the other adapter, its modules by depth) for each pair with the report's subject."""
        pairs = [pair for pair in self._overlap().pairs if pair.first == self.report.subject.name]
        return [
            (pair.second, _picture(f"depth{number}", "similarity by block", lambda pair=pair: depth_figure(pair)))  # type: ignore[misc]
            for number, pair in enumerate(pairs)
        ]

    def grids(self) -> list[tuple[str, str]]:
        """(the other adapter, the grids of the chosen modules)."""
        pictures: list[tuple[str, str]] = []
        for number, other in enumerate(self._overlap().names[1:]):
            grids = [grid for grid in self._overlap().grids if grid.second == other][:_GRID_COLUMNS]
            if grids:
                drawn = _picture(f"grids{number}", "subspace similarity", lambda grids=grids: grid_figure(grids))  # type: ignore[misc]
                pictures.append((other, drawn))
        return pictures

    def scale(self) -> str:
        """The scale of the similarities."""
        return _picture("scale", "the scale of similarities, from 0 to 1", scale_figure)

    def _heat(self, name: str, description: str, values: Mapping[str, float], form: str = "{:.3g}") -> str:
        grid: BlockGrid = block_grid(values, mean)
        return _picture(
            name, f"{description}, by block and kind of module", lambda: heat_figure(grid, description, form=form)
        )

    def _overlap(self) -> Overlap:
        assert self.report.overlap is not None
        return self.report.overlap


def _picture(name: str, description: str, draw: Callable[[], Figure]) -> Markup:
    # The only text that the template does not escape: drawn here, where matplotlib has escaped it.
    return Markup(svg(name, description, draw))


def _mean_of(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return mean(there) if there else None


def _only(values: set[str]) -> str:
    return next(iter(values)) if len(values) == 1 else "various"


def _number(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else format(value, form)  # noqa: RUF001  # a dash
