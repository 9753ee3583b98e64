"""``weft inspect``: what an adapter is, in numbers and in pictures."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.adapters import named_paths
from weft.cli.output import errors, print_json, quiet_transformers, results, size, table
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.adapter import Adapter
    from weft.analysis.against_base import BaseComparison
    from weft.analysis.inspect import AdapterNumbers, ModuleNumbers
    from weft.analysis.intruders import Search
    from weft.analysis.signs import Sign
    from weft.analysis.similarity import Overlap


def inspect(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="The adapter, a run, or a name in the library; then others to compare with. NAME=PATH names one.",
            metavar="ADAPTER [OTHER]...",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="Compare with the weights of this base: a folder, a hub id, or `bundled`.", show_default=False
        ),
    ] = None,
    intruders: Annotated[
        bool, typer.Option("--intruders", help="With --base: count intruder dimensions. Takes seconds a module.")
    ] = False,
    top: Annotated[int, typer.Option(help="With --intruders: how many leading directions to look at.")] = 10,
    epsilon: Annotated[float, typer.Option(help="With --intruders: the cosine below which one is an intruder.")] = 0.5,
    grids: Annotated[
        list[str],
        typer.Option(
            help="Modules to give whole similarity grids of: a name, a glob or re:REGEX. Default: the first, middle "
            "and last block of the two kinds that changed most.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  # typer wants a list, and does not change it
    any_base: Annotated[bool, typer.Option("--any-base", help="Take adapters that name another base.")] = False,
    modules: Annotated[bool, typer.Option("--modules", help="One row for each module, not for each kind.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with pictures: one HTML file.", metavar="FILE.html")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show an adapter's numbers: ranks, norms, spectra, what they say of the training, and how alike adapters are.

    For each kind of module the table gives the rank, the scaling s, and of the change D = s B A its Frobenius norm, its
    stable rank ||D||_F^2 / ||D||_2^2, how many directions hold 99% of its energy, and how full the rank is: near 1 the
    last directions are as strong as the first, near 0 some rank is to spare. With DoRA, D is the change before the
    weight is scaled, and the mean magnitude stands beside it. Values are means over the modules of a kind; `--modules`
    gives each, `--json` everything. What the numbers, and a run's losses, say of the training stands below.

    Everything is computed from the factors. `--base` adds what takes the weights, which are read one at a time.

    Examples:

        weft inspect runs/mine

        weft inspect runs/mine --base bundled --report mine.html

        weft inspect runs/seed-1 runs/seed-2 runs/other --report compared.html
    """
    from weft.adapter import file_formats
    from weft.analysis.inspect import inspect as numbers_of
    from weft.formats import load

    paths = named_paths(adapters)
    search = _search(base, intruders, top, epsilon)
    if grids and len(paths) < 2:
        raise ConfigError("--grids needs another adapter to compare with: weft inspect ADAPTER OTHER")
    if report is not None:
        _check_report(report)
        import weft.analysis.report  # noqa: F401  # says now, not at the end, that matplotlib is missing
    loaded = {name: load(path) for name, path in paths.items()}
    numbers = {name: numbers_of(adapter) for name, adapter in loaded.items()}
    subject, *others = paths
    formats = {name: next(f for f in file_formats if file_formats[f].recognises(path)) for name, path in paths.items()}
    lines = _metrics(paths[subject])
    found = _signs(paths[subject], lines, numbers[subject])
    overlap = _overlap(loaded, numbers[subject], grids, any_base) if others else None
    comparisons = _against_base(loaded[subject], base, search, any_base) if base is not None else None
    if report is not None:
        from weft.analysis.report import Report, Subject
        from weft.analysis.signs import Curves

        subjects = [
            Subject(name, _facts(paths[name], formats[name], loaded[name]), loaded[name].num_parameters, numbers[name])
            for name in paths
        ]
        Report(
            subjects[0],
            tuple(subjects[1:]),
            tuple(comparisons or ()),
            overlap,
            Curves.of(lines) if lines else None,
            tuple(found),
        ).save(report)
    if as_json:
        documents = [_document(paths[name], formats[name], loaded[name], numbers[name]) for name in paths]
        document = documents[0] | {"signs": [dataclasses.asdict(sign) for sign in found]}
        if comparisons is not None:
            document["against_base"] = [_comparison(c) for c in comparisons]
        if overlap is not None:
            document |= {"others": documents[1:], "overlap": dataclasses.asdict(overlap)}
        print_json(document)
        return
    _show(_facts(paths[subject], formats[subject], loaded[subject]), loaded[subject], numbers[subject], modules)
    if comparisons is not None:
        _show_comparisons(comparisons, modules)
    if overlap is not None:
        _show_overlap(overlap)
    _show_signs(found)
    if report is not None:
        results().print(f"\nwrote {report}, {size(report.stat().st_size)}", markup=False, soft_wrap=True)


def _search(base: str | None, intruders: bool, top: int, epsilon: float) -> "Search | None":
    if not intruders:
        return None
    if base is None:
        raise ConfigError("--intruders compares with the base's weights: name it with --base")
    from weft.analysis.intruders import Search

    return Search(top, epsilon)


def _check_report(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"report: {path} is a folder; name a file, such as {path / 'report.html'}")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "no folder" if not nearest.is_dir() else "a folder that cannot be written to"
        raise ConfigError(f"report: {nearest} is {reason}; name another place than {path}")


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics of the run that an adapter's folder belongs to; none if it is not a run's."""
    from weft.training.folder import RunFolder

    run = RunFolder(path.parent)
    return run.lines() if run.adapter == path else []


def _signs(path: Path, lines: list[dict[str, Any]], numbers: "AdapterNumbers") -> list["Sign"]:
    import yaml

    from weft.analysis.signs import signs
    from weft.training.folder import RunFolder

    clip = None
    if lines:
        try:  # as plain values: a run of another version may have settings that this one does not know
            settings = yaml.safe_load(RunFolder(path.parent).config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            settings = None
        clip = settings.get("max_grad_norm") if isinstance(settings, dict) else None
    return signs(lines, numbers, clip if isinstance(clip, int | float) else None)


def _overlap(
    adapters: Mapping[str, "Adapter"], numbers: "AdapterNumbers", grids: list[str], any_base: bool
) -> "Overlap":
    from weft.analysis.similarity import compare, default_grids
    from weft.patterns import matches, nothing_matched

    paths = [m.path for m in numbers.modules]
    for pattern in grids:
        if not any(matches(pattern, path) for path in paths):
            raise nothing_matched("grids", pattern, paths)
    chosen = [path for path in paths if any(matches(pattern, path) for pattern in grids)]
    return compare(adapters, chosen or default_grids(numbers), any_base=any_base)


def _against_base(adapter: "Adapter", base: str, search: "Search | None", any_base: bool) -> list["BaseComparison"]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from weft.analysis.against_base import against_base
    from weft.model.stored_weights import StoredWeights
    from weft.training.skeleton import stored_model

    quiet_transformers()
    weights = StoredWeights.of(stored_model(base, "base"), adapter, any_base=any_base)
    console = errors()
    columns = (TextColumn("reading the base"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(adapter.factors))
        for comparison in against_base(adapter, weights.matrix, search):
            found.append(comparison)
            progress.advance(task)
    return found


def _document(path: Path, format_name: str, adapter: "Adapter", numbers: "AdapterNumbers") -> dict[str, Any]:
    from weft.analysis.grid import energy_shares

    return {
        "path": str(path),
        "format": format_name,
        "base": adapter.base.to_dict() if adapter.base is not None else None,
        "provenance": dict(adapter.provenance),
        "config": adapter.config.to_dict(),
        "parameters": adapter.num_parameters,
        "bytes": numbers.nbytes,
        "norm": numbers.norm,
        "energy": dataclasses.asdict(energy_shares(numbers)),
        "modules": [
            {
                "path": m.path,
                "kind": m.kind,
                "shape": list(m.shape),
                "rank": m.rank,
                "scaling": m.scaling,
                **dataclasses.asdict(m.spectrum),
                "magnitude": m.magnitude,
                "bytes": m.nbytes,
            }
            for m in numbers.modules
        ],
        "tensors": dict(numbers.tensors),
        "companions": dict(numbers.companions),
    }


def _comparison(comparison: "BaseComparison") -> dict[str, Any]:
    document = dataclasses.asdict(comparison)
    if comparison.intruders is not None:
        found = comparison.intruders
        document["intruders"] |= {"count": found.count, "undecided": found.undecided}
    return document


def _facts(path: Path, format_name: str, adapter: "Adapter") -> dict[str, str]:
    return {
        "adapter": str(path),
        "format": format_name,
        "base": str(adapter.provenance.get("base", "not named")),
        "fingerprint": adapter.base.structure
        if adapter.base is not None
        else "none: any base with these shapes is taken",
        **{key: str(value) for key, value in adapter.provenance.items() if key != "base"},
        **{key: str(value) for key, value in adapter.config.to_dict().items() if value not in (None, [], {}, "none")},
        **({"companions": ", ".join(map(repr, adapter.config.companions))} if adapter.config.companions else {}),
    }


def _show(facts: Mapping[str, str], adapter: "Adapter", numbers: "AdapterNumbers", each: bool) -> None:
    from weft.patterns import open_index

    console = results()
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name.ljust(width)}  {value}", markup=False, soft_wrap=True)

    groups = {m.path: [m] for m in numbers.modules} if each else numbers.by_name()
    columns = ("magnitude",) if any(m.magnitude is not None for m in numbers.modules) else ()
    names = ("modules", "count", "out x in", "rank", "scaling", "norm", "stable", "99%", "full", *columns, "size")
    rows: list[tuple[str, ...]] = [names]
    for name, group in groups.items():
        means = (sum(values) / len(group) for values in zip(*(_averaged(m) for m in group), strict=True))
        rows.append(
            (
                name,
                str(len(group)),
                _all({f"{m.shape[0]} x {m.shape[1]}" for m in group}),
                _all({str(m.rank) for m in group}),
                _all({f"{m.scaling:g}" for m in group}),
                *(f"{mean:.3g}" for mean in means),
                size(sum(m.nbytes for m in group)),
            )
        )
    for name, nbytes in numbers.tensors.items():
        rows.append((name, "1", *[""] * (len(rows[0]) - 3), size(nbytes)))
    beside: dict[str, list[int]] = {}
    for path, nbytes in numbers.companions.items():
        beside.setdefault(path if each else open_index(path), []).append(nbytes)
    for name, sizes in beside.items():
        rows.append((name, str(len(sizes)), *[""] * (len(rows[0]) - 3), size(sum(sizes))))
    console.print(table(rows, right=rows[0][1:]))
    console.print(
        f"{adapter.num_parameters:,} parameters in {len(numbers.modules)} modules, {size(numbers.nbytes)}; "
        f"all changes together have norm {numbers.norm:.4g}"
    )
    if columns:
        console.print("norms and ranks are those of s B A, before the weight is scaled to the magnitudes")


def _show_comparisons(comparisons: list["BaseComparison"], each: bool) -> None:
    from weft.patterns import open_index

    groups: dict[str, list[BaseComparison]] = {}
    for c in comparisons:
        groups.setdefault(c.path if each else open_index(c.path), []).append(c)
    searched = any(c.intruders is not None for c in comparisons)
    rows: list[tuple[str, ...]] = [
        (
            "beside the base",
            "||D||/||W||",
            "||U'WV||",
            "by chance",
            "amplification",
            *(["intruders"] if searched else []),
        )
    ]
    for name, group in groups.items():
        cells = [
            f"{_mean([c.relative_norm for c in group]):.3%}",
            *(f"{_mean([getattr(c, field) for c in group]):.3g}" for field in ("projected_norm", "chance_norm")),
            f"{_mean([c.amplification for c in group]):.3g}",
        ]
        if searched:
            found = [c.intruders for c in group if c.intruders is not None]
            undecided = sum(each.undecided for each in found)
            cells.append(f"{sum(each.count for each in found)}" + (f" to {undecided} more" if undecided else ""))
        rows.append((name, *cells))
    results().print()
    results().print(table(rows, right=rows[0][1:]))


def _show_overlap(overlap: "Overlap") -> None:
    rows: list[tuple[str, ...]] = [("compared", "modules", "cosine", "inputs", "outputs", "by chance")]
    for pair in overlap.pairs:
        chance = _mean([(m.chance_inputs + m.chance_outputs) / 2 for m in pair.modules])
        numbers = (pair.cosine, pair.inputs, pair.outputs, chance)
        rows.append(
            (
                f"{pair.first} and {pair.second}",
                str(len(pair.modules)),
                *("-" if number is None else f"{round(number, 3) + 0.0:.3f}" for number in numbers),
            )
        )
    results().print()
    results().print(table(rows, right=rows[0][1:]))


def _show_signs(signs: list["Sign"]) -> None:
    console = results()
    for sign in signs:
        console.print(f"\n{sign.level}: {sign.text}", markup=False)


def _averaged(m: "ModuleNumbers") -> tuple[float, ...]:
    s = m.spectrum
    measured = (s.norm, s.stable_rank, s.rank_99, s.saturation)
    return measured if m.magnitude is None else (*measured, m.magnitude)


def _mean(values: list[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else float("nan")


def _all(values: set[str]) -> str:
    """The one value that all of a group have, or the word for several."""
    return next(iter(values)) if len(values) == 1 else "various"
