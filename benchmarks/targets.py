"""What the figures are to be: each target is a question to the data, and the data answers it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from benchmarks.records import Row

Where = dict[str, tuple[str | int | float, ...]]
"""Setting -> the values that count."""

DROPOUTS = (0.0, 0.05)


@dataclass(frozen=True)
class Target:
    """A bound on a figure of one variant, or on its ratio to another's in the same rounds.

    Attributes:
        what: the figure in words.
        benchmark: where it is found.
        variant: the one in question.
        bound: what the figure may be at most, or with `at_least` at least.
        over: the variant to divide by; None for the figure itself.
        quantity: which of the figures.
        unit: of the figure itself: a name and how many of it are in one of the quantity's.
        where: the settings for which it holds: key -> the values that count.
        at_least: whether the bound is a lower one.
    """

    what: str
    benchmark: str
    variant: str
    bound: float
    over: str | None = None
    quantity: str = "seconds"
    unit: tuple[str, float] = ("", 1.0)
    where: Where = field(default_factory=dict)
    at_least: bool = False

    def unmeasured(self, rows: Sequence[Row]) -> list[dict[str, str | int | float]]:
        """The settings that count and that nobody measured."""
        found = [row.setting for row, _ in self.findings(rows)]
        wanted = [dict(zip(self.where, values, strict=True)) for values in product(*self.where.values())]
        return [each for each in wanted if not any(each.items() <= setting.items() for setting in found)]

    def findings(self, rows: Iterable[Row]) -> list[tuple[Row, float]]:
        """The figure in every setting that counts and was measured, the worst first."""
        found = [
            (row, self._figure(row))
            for row in rows
            if row.benchmark == self.benchmark
            and all(row.setting.get(key) in values for key, values in self.where.items())
            and all(row.has(name, self.quantity) for name in (self.variant, self.over) if name)
        ]
        return sorted(found, key=lambda each: each[1], reverse=not self.at_least)

    def is_met(self, figure: float) -> bool:
        """Whether a figure is within the bound."""
        return figure >= self.bound if self.at_least else figure <= self.bound

    def _figure(self, row: Row) -> float:
        if self.over is not None:
            return row.ratio(self.variant, self.over, self.quantity)
        return self.unit[1] * row.median(self.variant, self.quantity)


def _models(*names: str, dtype: str = "float32", dropouts: tuple[float, ...] = DROPOUTS) -> Where:
    return {"model": names, "rank": (8,), "dtype": (dtype,), "device": ("cpu",), "dropout": dropouts}


_LARGER = ("MiniLM 23M", "39M", "124M")
_FROM_5M = ("5M", *_LARGER)
_ALL = ("0.5M", *_FROM_5M)
_SAVED: Where = {"model": _ALL, "rank": (8,), "dtype": ("float32",), "device": ("cpu",)}
_MS = ("ms", 1e3)


def _forward_backward(bound: float, label: str, *models: str) -> Target:
    what = f"forward and backward over the limit, rank 8, {label}"
    return Target(what, "forward_backward", "weft", bound, "limit", where=_models(*models))


def _over_full(bound: float) -> Target:
    what = "whole step over full fine-tuning, every size"
    return Target(what, "step", "weft", bound, "full fine-tuning", where=_models(*_ALL))


def _peft_step(label: str, bound: float, where: Where) -> Target:
    what = f"whole step, peft over weft, 5M and up, {label}"
    return Target(what, "step", "peft", bound, "weft", where=where, at_least=True)


def _saved(what: str, variant: str, over: str) -> Target:
    return Target(
        f"bytes saved for the backward pass, {what}", "saved", variant, 1.05, over, "saved_bytes", where=_SAVED
    )


def _train(what: str, over: str, quantity: str, bounds: tuple[float, float]) -> list[Target]:
    """In float32 and in bfloat16."""
    return [
        Target(
            f"`weft train`, {what}, {dtype}",
            "train",
            "weft",
            bound,
            over,
            quantity,
            where={"base": ("bundled", "39M"), "dtype": (dtype,), "device": ("cpu",)},
            at_least=quantity == "label_tokens_per_second",
        )
        for dtype, bound in zip(("float32", "bfloat16"), bounds, strict=True)
    ]


def _milliseconds(what: str, benchmark: str, bound: float, where: Where) -> Target:
    return Target(what, benchmark, "weft", bound, unit=_MS, where=where)


_ATTACH: Where = {"shape": ("Llama 7B", "experts")}
_39M: Where = {"model": ("39M",)}
_GENERATE: Where = {**_39M, "batch": (1, 8), "device": ("cpu",)}
_COMBINED: Where = {"model": ("125M", "Llama 7B")}
_WIDE: Where = {"width": (4096,)}
_7B: Where = {"model": ("Llama 7B",)}
_SAME = "(the same, within noise)"

TARGETS = (
    _forward_backward(1.12, "from 23M up", *_LARGER),
    _forward_backward(1.15, "5M", "5M"),
    _forward_backward(1.30, "0.5M", "0.5M"),
    _over_full(1.0),
    _peft_step("dropout 0", 1.10, _models(*_FROM_5M, dropouts=(0.0,))),
    _peft_step("dropout 0.05", 1.40, _models(*_FROM_5M, dropouts=(0.05,))),
    _peft_step("bfloat16", 1.50, _models(*_FROM_5M, dtype="bfloat16")),
    _saved("dropout 0.05 over 0", "weft, dropout", "weft"),
    _saved("recomputing, over the limit", "weft, recomputing, dropout", "limit"),
    *_train("label tokens a second over peft at its defaults", "peft", "label_tokens_per_second", (3.0, 5.0)),
    *_train("peak memory over peft at its defaults", "peft", "peak_bytes", (0.5, 0.4)),
    *_train(
        "label tokens a second over peft at its best", "peft, best settings", "label_tokens_per_second", (2.0, 2.0)
    ),
    *_train(f"held-out loss over peft's {_SAME}", "peft", "loss_after", (1.02, 1.02)),
    _milliseconds("attach to 224 modules, 7B on meta", "attach", 20.0, {"shape": ("Llama 7B",)}),
    _milliseconds("attach to 9,216 linear layers", "attach", 500.0, {"shape": ("experts",)}),
    Target(
        f"attach a second adapter over a first {_SAME}", "attach", "weft, second adapter", 1.05, "weft", where=_ATTACH
    ),
    _milliseconds("load a 2.7 MiB adapter beside 50", "load", 5.0, {**_39M, "loaded": (50,)}),
    _milliseconds("switch, 56 modules", "switch", 1.0, {**_39M, "loaded": (1, 10, 50)}),
    Target("generate unmerged over the base, 39M", "generate", "weft", 1.07, "base", where=_GENERATE),
    Target(
        "generate merged over the base, 39M (1.00, rounded)", "generate", "weft, merged", 1.005, "base", where=_GENERATE
    ),
    Target(
        "combine at rank 16, per module, peft's svd over weft's",
        "combine",
        "peft",
        100.0,
        "weft",
        where=_COMBINED,
        at_least=True,
    ),
    Target(
        f"error of combining over peft's {_SAME}", "combine", "weft", 1.001, "peft", "relative_error", where=_COMBINED
    ),
    Target(
        "extract rank 16 from 4096 x 4096, full SVD over weft",
        "extract",
        "full SVD",
        20.0,
        "weft",
        where=_WIDE,
        at_least=True,
    ),
    Target(
        "error of extracting over the least there is",
        "extract",
        "weft",
        1.01,
        "full SVD",
        "relative_error",
        where=_WIDE,
    ),
    *(
        Target(f"{name}, an adapter of a 7B Llama, rank 16", "algebra", name, bound, unit=("s", 1.0), where=_7B)
        for name, bound in (("combine, svd", 10.0), ("resize to rank 8", 10.0), ("inspect", 10.0))
    ),
    *(
        Target(
            f"{name}, peak memory over the adapters' own size", "algebra", name, 4.0, quantity="peak_share", where=_7B
        )
        for name in ("combine, svd", "resize to rank 8", "inspect")
    ),
    *(
        Target(f"open and search a library, {name}", "library", name, 50.0, unit=_MS, where={"adapters": (10_000,)})
        for name in ("text", "base", "tag", "all of these", "similar")
    ),
    Target("import weft over import torch", "imports", "weft", 1.1, "torch"),
)
