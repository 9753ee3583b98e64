"""``weft inspect``: what an adapter is, in numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.adapters import adapter_path
from weft.cli.output import print_json, results, size, table

if TYPE_CHECKING:
    from weft.adapter import Adapter
    from weft.analysis.inspect import AdapterNumbers, ModuleNumbers


def inspect(
    adapter: Annotated[Path, typer.Argument(help="The adapter, or the folder of a run.", show_default=False)],
    modules: Annotated[bool, typer.Option("--modules", help="One row for each module, not for each kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show an adapter's configuration, ranks, scalings, norms and size.

    Reads the adapter alone, no base. For each kind of module the table gives the rank, the scaling s, and of the
    change D = s B A its Frobenius norm, its stable rank ||D||_F^2 / ||D||_2^2 and its effective rank (the exponential
    of the entropy of its singular values): how many of its dimensions the training made use of. With DoRA, D is the
    change before the weight is scaled, and the mean magnitude stands beside it. Values are means over the modules of a
    kind; `--modules` gives each.

    Examples:

        weft inspect runs/mine/adapter

        weft inspect runs/mine/adapter --modules
    """
    from weft.adapter import file_formats
    from weft.analysis.inspect import inspect as numbers_of
    from weft.formats import load

    adapter = adapter_path(adapter)
    loaded = load(adapter)
    numbers = numbers_of(loaded)
    format_name = next(name for name in file_formats if file_formats[name].recognises(adapter))
    if as_json:
        print_json(_document(adapter, format_name, loaded, numbers))
    else:
        _show(adapter, format_name, loaded, numbers, modules)


def _document(path: Path, format_name: str, adapter: "Adapter", numbers: "AdapterNumbers") -> dict[str, Any]:
    return {
        "path": str(path),
        "format": format_name,
        "base": adapter.base.to_dict() if adapter.base is not None else None,
        "provenance": dict(adapter.provenance),
        "config": adapter.config.to_dict(),
        "parameters": adapter.num_parameters,
        "bytes": numbers.nbytes,
        "modules": [
            {
                "path": m.path,
                "kind": m.kind,
                "shape": list(m.shape),
                "rank": m.rank,
                "scaling": m.scaling,
                "norm": m.norm,
                "spectral_norm": m.spectral_norm,
                "stable_rank": m.stable_rank,
                "effective_rank": m.effective_rank,
                "magnitude": m.magnitude,
                "bytes": m.nbytes,
            }
            for m in numbers.modules
        ],
        "tensors": dict(numbers.tensors),
    }


def _show(path: Path, format_name: str, adapter: "Adapter", numbers: "AdapterNumbers", each: bool) -> None:

    console = results()
    facts = {
        "adapter": str(path),
        "format": format_name,
        "base": str(adapter.provenance.get("base", "not named")),
        "fingerprint": adapter.base.structure
        if adapter.base is not None
        else "none: any base with these shapes is taken",
        **{key: str(value) for key, value in adapter.provenance.items() if key != "base"},
        **{key: str(value) for key, value in adapter.config.to_dict().items() if value not in (None, [], {}, "none")},
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name.ljust(width)}  {value}", markup=False, soft_wrap=True)

    groups = {m.path: [m] for m in numbers.modules} if each else numbers.by_name()
    scaled = any(m.magnitude is not None for m in numbers.modules)
    columns = ("magnitude",) if scaled else ()
    rows: list[tuple[str, ...]] = [
        ("modules", "count", "out x in", "rank", "scaling", "norm", "stable", "effective", *columns, "size")
    ]
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
    console.print(table(rows, right=rows[0][1:]))
    total = sum(m.norm**2 for m in numbers.modules) ** 0.5
    console.print(
        f"{adapter.num_parameters:,} parameters in {len(numbers.modules)} modules, {size(numbers.nbytes)}; "
        f"all changes together have norm {total:.4g}"
    )


def _averaged(m: "ModuleNumbers") -> tuple[float, ...]:
    return m.norm, m.stable_rank, m.effective_rank, *([] if m.magnitude is None else [m.magnitude])


def _all(values: set[str]) -> str:
    """The one value that all of a group have, or the word for several."""
    return next(iter(values)) if len(values) == 1 else "various"
