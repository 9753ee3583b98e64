"""``weft extract``: an adapter from two checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import adapter_options as options
from weft.cli.costs import percent, span
from weft.cli.dtype import Dtype
from weft.cli.output import errors, print_json, quiet_transformers, results, size, table

if TYPE_CHECKING:
    from weft.model.difference import Sizes
    from weft.model.extraction import Extraction


def extract(
    base: Annotated[str, typer.Argument(help="The base model: a folder, a hub id, or `bundled`.", show_default=False)],
    finetuned: Annotated[
        str, typer.Argument(help="The model that was fine-tuned from it: a folder or a hub id.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="The folder to write.", show_default=False)],
    rank: Annotated[int | None, typer.Option(min=1, help="The largest rank of a module.", show_default=False)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of each module's squared singular values.", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Keep each module within this relative error.", show_default=False)
    ] = None,
    targets: options.Targets = ["all-layers"],  # noqa: B006  # typer wants a list, and does not change it
    exclude: options.Exclude = [],  # noqa: B006
    layers: options.Layers = [],  # noqa: B006
    whole: Annotated[
        list[str],
        typer.Option(help="Patterns of modules to carry whole, such as a classifier's head.", show_default=False),
    ] = [],  # noqa: B006
    vectors: Annotated[bool, typer.Option("--vectors", help="Carry changed biases and norms too, whole.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Write the factors in this dtype.")] = Dtype.float32,
    modules: Annotated[bool, typer.Option("--modules", help="One row for each module, not for each kind.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is in use.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make an adapter of what fine-tuning changed in a model, and say what it lacks.

    Reads both checkpoints' files, one tensor or a block of a large one at a time, and reduces each change D = W' - W to
    low rank. Give one of `--rank`, `--energy` and `--error`; with the last two each module gets the rank that it needs.
    What changed and is not of low rank is reported, tensor by tensor, with the share of the whole change that is lost.

    Examples:

        weft extract ./base ./finetuned --rank 16 --output adapter

        weft extract ./base ./finetuned --energy 0.9 --vectors --output adapter
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from weft.model.extract import extract_with_report
    from weft.model.new_folder import check_output

    quiet_transformers()
    check_output(output, overwrite, keep=[folder for name in (base, finetuned) if (folder := Path(name)).is_dir()])
    console = errors()
    columns = (TextColumn("extracting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("extracting", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        extraction = extract_with_report(
            base,
            finetuned,
            rank=rank,
            energy=energy,
            error=error,
            targets=options.split(targets),
            exclude=options.split(exclude),
            layers=options.indices(layers),
            whole=options.split(whole),
            vectors=vectors,
            dtype=dtype.of_torch,
            progress=advance,
        )
    extraction.adapter.save(output)
    if as_json:
        print_json({"output": str(output), **_document(extraction)})
    else:
        _show(extraction, output, modules)


def _document(extraction: "Extraction") -> dict[str, Any]:
    """The report as plain values."""
    adapter = extraction.adapter
    return {
        "parameters": adapter.num_parameters,
        "bytes": adapter.nbytes,
        "norm": extraction.norm,
        "relative_change": extraction.relative_change,
        "relative_error": extraction.relative_error,
        "energy_left_out": extraction.energy_left_out,
        "rounding": extraction.rounding,
        "unchanged": extraction.unchanged,
        "modules": {
            path: {
                "modules": list(module.modules),
                "rank": module.rank,
                "norm": module.sizes.change,
                "relative_change": module.sizes.relative,
                "relative_error": module.relative_error,
                "energy": module.energy,
            }
            for path, module in extraction.modules.items()
        },
        "carried": {
            name: {"norm": sizes.change, "relative_change": sizes.relative}
            for name, sizes in extraction.carried.items()
        },
        "left_out": {
            name: {
                "norm": None if missed.sizes is None else missed.sizes.change,
                "relative_change": None if missed.sizes is None else missed.sizes.relative,
                "reason": missed.reason,
            }
            for name, missed in extraction.left_out.items()
        },
        "lineage": adapter.provenance["lineage"],
    }


def _show(extraction: "Extraction", output: Path, each: bool) -> None:
    """Prints a row for each kind of module (or, with `each`, module), what is not among them, and the whole."""
    from weft.patterns import open_index

    def groups(names: list[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(name if each else open_index(name), []).append(name)
        return found

    console = results()
    rows = [("modules", "count", "rank", "change", "error", "largest error", "energy")]
    for name, paths in groups(list(extraction.modules)).items():
        kept = [extraction.modules[path] for path in paths]
        rows.append(
            (
                name,
                str(len(kept)),
                span([module.rank for module in kept]),
                _mean([module.sizes.relative for module in kept]),
                _mean([module.relative_error for module in kept]),
                percent(max(module.relative_error for module in kept)),
                _mean([module.energy for module in kept]),
            )
        )
    if extraction.modules:
        console.print(table(rows, right=rows[0][1:]))
    others: dict[str, dict[str, Sizes | None]] = {}
    if extraction.carried:
        others["carried whole"] = dict(extraction.carried)
    for name, missed in extraction.left_out.items():
        others.setdefault(f"left out: {missed.reason}", {})[name] = missed.sizes
    for heading, found in others.items():
        lines = [(heading, "count", "change")]
        for name, names in groups(list(found)).items():
            changes = [sizes.relative for each_name in names if (sizes := found[each_name]) is not None]
            lines.append((name, str(len(names)), _mean(changes) if changes else "?"))
        console.print()
        console.print(table(lines, right=("count", "change")))
    adapter = extraction.adapter
    held = f"{len(adapter.factors)} modules" + (f" and {len(adapter.tensors)} tensors" if adapter.tensors else "")
    count = len(extraction.left_out)
    left_out = f"{percent(extraction.energy_left_out)} of the change's energy is left out, in {count} tensors"
    console.print(
        f"\nwrote {output}: {held}, {adapter.num_parameters:,} parameters, {size(adapter.nbytes)}\n"
        f"{extraction.unchanged} tensors are the base's; the others changed by {percent(extraction.relative_change)}\n"
        f"relative error of the whole change {percent(extraction.relative_error)}; "
        + (left_out if count else "no tensor that changed is left out"),
        markup=False,
        soft_wrap=True,
    )
    if extraction.rounding:
        console.print(
            f"about {percent(extraction.rounding)} of the change's norm is the rounding of the files' half precision",
            markup=False,
            soft_wrap=True,
        )


def _mean(values: list[float]) -> str:
    return percent(sum(values) / len(values))
