"""``weft merge``: an adapter into a checkpoint's files, for good."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.adapters import adapter_path
from weft.cli.dtype import Dtype
from weft.cli.output import errors, print_json, quiet_transformers, results, size


def merge(
    base: Annotated[str, typer.Argument(help="The base model: a folder, a hub id, or `bundled`.", show_default=False)],
    adapter: Annotated[
        Path,
        typer.Argument(help="The adapter, the folder of a run, or a name in the library.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)],
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Write floating-point tensors in this dtype; by default in that of the base's files."),
    ] = None,
    any_base: Annotated[bool, typer.Option("--any-base", help="Merge even if the adapter names another base.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is in use.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a plain transformers checkpoint with the adapter merged in.

    Works on the files: tensors are read one at a time, changed where the adapter changes them (added in float32,
    rounded once) and written, so that a base of any size passes through the memory of its largest layer. The result
    loads without weft and is, bit for bit, what merging in memory and saving would give. The output folder appears
    complete or not at all.

    Examples:

        weft merge bundled runs/mine/adapter --output merged

        weft merge ./my-base runs/mine/adapter --output merged --dtype bfloat16
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from weft.formats import load
    from weft.model.checkpoint import merge_checkpoint
    from weft.model.new_folder import check_output
    from weft.training.skeleton import base_folder, stored_model

    quiet_transformers()
    adapter = adapter_path(adapter)
    loaded = load(adapter)
    folder = base_folder(base)
    check_output(output, overwrite, keep=[folder, adapter])
    stored = stored_model(folder, "base")
    console = errors()
    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("merging", total=stored.checkpoint.nbytes)
        report = merge_checkpoint(
            stored,
            loaded,
            output,
            dtype=None if dtype is None else dtype.of_torch,
            any_base=any_base,
            overwrite=overwrite,
            progress=lambda tensor: progress.advance(task, tensor.nbytes),
        )
    if as_json:
        print_json(
            {
                "output": str(report.output),
                "files": report.files,
                "tensors": report.tensors,
                "changed": report.changed,
                "bytes": report.nbytes,
                "changed_bytes": report.changed_nbytes,
                "mean_relative_change": report.mean_relative_change,
                "trained_on": report.trained_on,
                "mean_rounding": report.mean_rounding,
            }
        )
        return
    files = "1 file" if report.files == 1 else f"{report.files} files"
    results().print(
        f"wrote {report.output}: {report.tensors} tensors in {files}, {size(report.nbytes)}\n"
        f"changed {report.changed} of them, {size(report.changed_nbytes)}; the weights by "
        f"{report.mean_relative_change:.3%} of their norm on average",
        markup=False,
        soft_wrap=True,
    )
    if report.trained_on is not None:
        rounding = report.mean_rounding
        apart = "" if rounding is None else f": the two differ by {rounding:.3%} of their norm on average"
        results().print(
            f"the adapter was trained on these weights in {report.trained_on}, and is merged into them as they are "
            f"unquantised{apart}",
            markup=False,
            soft_wrap=True,
        )
