"""The report: one page that stands alone, with every figure and number in it."""

import dataclasses
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import weft
from weft.analysis.against_base import against_base
from weft.analysis.inspect import inspect
from weft.analysis.intruders import Search
from weft.analysis.report import Report, Subject
from weft.analysis.signs import Curves, signs
from weft.analysis.similarity import compare, default_grids
from weft.errors import FormatError

from .adapters import adapter_of, low_rank, small

VOID = {"meta", "link", "img", "br", "hr", "input", "source"}
HOSTILE = '$x^$<script>alert("hello")</script> & \\frac{1}{</style>'


class Page(HTMLParser):
    """A page's text, its pictures' titles, and a check that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href", "src"):
                self.addresses.append(value or "")
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        return " ".join(data for tag, data in self.texts if tag != "style")

    @property
    def pictures(self) -> list[str]:
        return [data for tag, data in self.texts if tag == "title"][1:]


def subject(name: str, adapter: weft.Adapter) -> Subject:
    facts = {"adapter": f"/runs/{name}", "base": "some-base", "rank": "4"}
    return Subject(name, facts, adapter.num_parameters, inspect(adapter))


def full_report(name: str = "mine", other: str = "theirs") -> Report:
    torch.manual_seed(0)
    a, b = small(0), small(1)
    lines = [{"step": 10 * i, "loss": 3.0 - i / 20, "grad_norm": 1.0 + i} for i in range(1, 30)]
    lines += [{"step": 100 * i, "eval_loss": loss} for i, loss in enumerate((4.0, 2.0, 2.5))]
    weights = {path: torch.randn(D.shape) for path, D in a.factors.items()}
    numbers = inspect(a)
    return Report(
        subject(name, a),
        (subject(other, b),),
        tuple(against_base(a, weights.__getitem__, Search(5))),
        compare({name: a, other: b}, default_grids(numbers)),
        Curves.of(lines),
        tuple(signs(lines, numbers)),
    )


@pytest.fixture(scope="module")
def full() -> tuple[Report, str]:
    report = full_report()
    return report, report.html()


def test_everything_is_there(full: tuple[Report, str]) -> None:
    report, page = full[0], Page(full[1])
    assert page.pictures == [
        "training and held-out loss over steps",
        "share of the energy by block and kind of module",
        "singular values of each module",
        "cumulative energy over directions",
        "saturation of the rank by kind",
        "directions that 99% of the energy needs, by block and kind of module",
        "norm of the change over that of the weight, by block and kind of module",
        "amplification of what was there, by block and kind of module",
        "norm of the change against the weight in its directions",
        "largest cosine of each leading direction",
        "intruder dimensions, by block and kind of module",
        "cosine and subspace similarity of every two adapters",
        "similarity by block",
        "subspace similarity",
        "the scale of similarities, from 0 to 1",
    ]
    assert page.tags["svg"] == len(page.pictures) + 1  # and the mark
    for sign in report.signs or ():
        assert sign.text in page.text
    for m, c in zip(report.subject.numbers.modules, report.comparisons, strict=True):
        assert m.path in page.text
        assert f"{m.spectrum.norm:.3g}" in page.text
        assert f"{m.spectrum.stable_rank:.3g}" in page.text
        assert c.amplification is not None
        assert f"{c.amplification:.3g}" in page.text
    assert f"{report.subject.numbers.norm:.4g}" in page.text
    assert report.overlap is not None
    assert f"{report.overlap.pairs[0].inputs:.2f}" in page.text  # in the matrix


def test_the_page_stands_alone(full: tuple[Report, str]) -> None:
    html = full[1]
    page = Page(html)
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert "@import" not in html
    assert "url(http" not in html
    assert len(set(page.ids)) == len(page.ids)
    inside = [address[1:] for address in page.addresses if address.startswith("#")] + page.references
    assert inside
    assert set(inside) <= set(page.ids)
    assert "prefers-color-scheme: dark" in html
    assert "#0a0b" not in html  # every marker color became a variable
    assert len(html) < 500_000


def test_names_from_files_stay_text() -> None:
    adapter = adapter_of(
        {f"layers.0.{HOSTILE}": low_rank(), "layers.1.b": low_rank()}, tensors={f"{HOSTILE}.weight": torch.zeros(3)}
    )
    report = full_report(HOSTILE, "b" + HOSTILE)
    report = dataclasses.replace(report, subject=subject(HOSTILE, adapter), comparisons=())
    html = report.html()
    page = Page(html)
    assert page.tags["script"] == 0
    assert page.tags["style"] == 1
    assert page.text.count(HOSTILE) >= 6
    assert html.count("<script") == 0


def test_what_is_not_there_is_left_out() -> None:
    adapter = small(0)
    page = Page(Report(subject("a", adapter)).html())
    assert len(page.pictures) == 5
    for word in ("Advice", "Beside the base", "Beside other adapters", "Trained whole"):
        assert word not in page.text
    only_tensors = Page(Report(subject("a", adapter_of({}, tensors={"head.weight": torch.ones(2)}))).html())
    assert only_tensors.pictures == []
    assert "head.weight" in only_tensors.text
    zero = adapter_of({"a.0.b": weft.LowRank(torch.zeros(4, 2), torch.ones(2, 3))})
    assert "a.0.b" in Page(Report(subject("a", zero)).html()).text


def test_magnitudes_are_told_apart() -> None:
    adapter = adapter_of({"a.0.b": low_rank()}, magnitudes={"a.0.b": torch.full((12,), 1.75)})
    page = Page(Report(subject("a", adapter)).html())
    assert "D is the change before the weight is scaled" in page.text
    assert "1.75" in page.text
    assert "DoRA" not in Page(Report(subject("a", small(0))).html()).text


def test_adapters_of_rank_one_and_of_many_modules() -> None:
    adapter = adapter_of({f"h.{i}.experts.{e}.w": low_rank(4, 3, 1) for i in range(20) for e in range(100)})
    html = Report(subject("a", adapter), (subject("b", adapter),), overlap=compare({"a": adapter, "b": adapter})).html()
    page = Page(html)
    assert "the first 1000 of 2000" in page.text
    assert len(html) < 1_200_000


def test_the_same_report_is_the_same_bytes(full: tuple[Report, str]) -> None:
    assert full_report().html() == full[1]


def test_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(subject("a", small(0)))
    path = tmp_path / "new" / "report.html"
    assert report.save(path) == path
    assert Page(path.read_text(encoding="utf-8")).pictures
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FormatError, match="cannot write to"):
        report.save(tmp_path / "file" / "report.html")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "new", "report.html"]


def test_numbers_that_are_extreme_can_be_drawn() -> None:
    adapter = adapter_of({"a.0.x": low_rank(scale=1e-18), "a.1.x": low_rank(scale=1e12)})
    page = Page(Report(subject("a", adapter)).html())
    assert len(page.pictures) == 5
    assert not math.isnan(inspect(adapter).norm)
