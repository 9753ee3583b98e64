"""``weft resize``: the same adapter at lower ranks."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.adapters import adapter_path
from weft.cli.costs import document, in_dtype, show
from weft.cli.dtype import Dtype
from weft.cli.output import print_json, tracked


def resize(
    adapter: Annotated[
        Path,
        typer.Argument(help="The adapter, the folder of a run, or a name in the library.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="The folder to write.", show_default=False)],
    rank: Annotated[int | None, typer.Option(min=1, help="The largest rank of a module.", show_default=False)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of each module's squared singular values.", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Keep each module within this relative error.", show_default=False)
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Write in this dtype. Default: the adapter's own.")] = None,
    modules: Annotated[bool, typer.Option("--modules", help="One row for each module, not for each kind.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is in use.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Reduce an adapter's ranks, from its factors alone, and say what it cost.

    Give one of `--rank`, `--energy` and `--error`; with the last two each module gets the rank that it needs. What is
    kept is the best that its rank allows (the truncated SVD of the change D = s B A, without forming it). How much
    quality a rank costs is what `weft curve` measures.

    Examples:

        weft resize runs/mine --rank 4 --output small

        weft resize runs/mine --energy 0.99 --output small
    """
    from weft.algebra import resize_with_costs
    from weft.formats import load
    from weft.model.new_folder import check_output

    path = adapter_path(adapter)
    check_output(output, overwrite, keep=[path])
    loaded = load(path)
    costed = resize_with_costs(
        loaded, rank=rank, energy=energy, error=error, name=str(adapter), progress=tracked("resizing")
    )
    in_dtype(costed.adapter, dtype, [loaded]).save(output)
    if as_json:
        print_json(document(costed, output))
        return
    show(costed, output, modules)
