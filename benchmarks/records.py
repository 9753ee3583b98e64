"""What was found, as data: rows of JSON, appended, never changed; and the statistics that are read off them."""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

Setting = Mapping[str, str | int | float]
"""What figures depend on, beside the machine."""

Figures = dict[str, dict[str, list[float]]]
"""Variant -> quantity -> its figures, one a round."""

_DIGITS = 5  # significant; no clock is better


@dataclass(frozen=True)
class Row:
    """One case's figures.

    Attributes:
        benchmark: its name.
        setting: what was measured.
        figures: variant -> quantity -> its figures, one a round. Quantities are named after their units: seconds,
            saved_bytes, and so on.
        machine: processor, threads, versions.
        when: in UTC.
    """

    benchmark: str
    setting: Setting
    figures: Figures
    machine: Mapping[str, str | int | None]
    when: str

    def __str__(self) -> str:
        lines = [f"{self.benchmark}: " + ", ".join(f"{key} {value}" for key, value in self.setting.items())]
        for variant, quantities in self.figures.items():
            found = (f"{quantity} {self.median(variant, quantity):.5g}" for quantity in quantities)
            lines.append(f"    {variant:28} {', '.join(found)}")
        return "\n".join(lines)

    def median(self, variant: str, quantity: str) -> float:
        """The median of a variant's figures."""
        return statistics.median(self.figures[variant][quantity])

    def ratio(self, variant: str, other: str, quantity: str) -> float:
        """The median over rounds of a variant's figure over another's in the same round."""
        pairs = zip(self.figures[variant][quantity], self.figures[other][quantity], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def has(self, variant: str, quantity: str) -> bool:
        """Whether the variant was measured: not every peer can be everywhere."""
        return quantity in self.figures.get(variant, {})


def append(row: Row, folder: Path = RESULTS) -> None:
    """Adds a row to ``<benchmark>.jsonl`` in the folder."""
    rounded = {
        variant: {quantity: [float(f"{value:.{_DIGITS}g}") for value in values] for quantity, values in each.items()}
        for variant, each in row.figures.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row.benchmark}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**asdict(row), "figures": rounded}) + "\n")


def newest(folder: Path = RESULTS) -> list[Row]:
    """The newest row of each benchmark and setting, in the order in which the settings were first measured."""
    found: dict[tuple[str, str], Row] = {}
    for row in _rows(folder):
        found[row.benchmark, json.dumps(row.setting, sort_keys=True)] = row
    return list(found.values())


def _rows(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield Row(**json.loads(line))
