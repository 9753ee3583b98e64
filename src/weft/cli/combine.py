"""``weft combine``: one adapter from several."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.adapters import named_paths
from weft.cli.costs import document, in_dtype, show
from weft.cli.dtype import Dtype
from weft.cli.output import print_json, results, table, tracked
from weft.config import choice_from
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.algebra import Method


def combine(
    adapters: Annotated[
        list[str], typer.Argument(help="The adapters: PATH or NAME=PATH, or folders of runs.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="The folder to write.", show_default=False)],
    method: Annotated[str, typer.Option("--method", "-m", help="How; see above.")] = "linear",
    weights: Annotated[
        str | None,
        typer.Option(help="One for each, such as 0.7,0.3 or 1,-1. Default: equal, with sum 1.", show_default=False),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="The largest rank of a module.", show_default=False)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of each module's squared singular values.", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Keep each module within this relative error.", show_default=False)
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="The share of entries to keep, of methods that leave some out.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Which entries are left out, of methods that draw them.", show_default=False)
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Write in this dtype. Default: float32, or what went in, untouched.")
    ] = None,
    factors_only: Annotated[
        bool, typer.Option("--factors-only", help="Leave out what was trained whole, such as heads and biases.")
    ] = False,
    modules: Annotated[bool, typer.Option("--modules", help="One row for each module, not for each kind.")] = False,
    any_base: Annotated[bool, typer.Option("--any-base", help="Combine also what names different bases.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is in use.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make one adapter of several, from their factors alone: no base is needed, and no dense matrix is formed.

    The combination is that of the changes D = s B A themselves, whatever their ranks, scalings and targets: there are
    no cross terms between one adapter's A and another's B. Where ranks are limited, the table gives the relative error
    that it cost, which for weighted sums no other choice of that rank could make smaller.

    Methods: `linear`, the weighted sum in the fewest ranks that hold it; `concat`, the same with the factors side by
    side as they are; `svd`, the same at the largest rank that went in, or at `--rank`.

    Entry by entry, with a share of them kept (`--density`): `magnitude_prune`, the weighted sum of the largest entries
    of each; `ties`, the mean of those that agree in sign; `dare` and `dare_ties`, likewise of entries drawn at random
    (`--seed`) and rescaled. These are of no low rank: the ranks that went in, added up, are what they get unless you
    say otherwise, and the table shows what that cost.

    Examples:

        weft combine runs/a runs/b --output both

        weft combine runs/a runs/b --weights 1,-1 --output difference

        weft combine runs/a runs/b runs/c --method svd --rank 16 --dtype bfloat16 --output small

        weft combine runs/a runs/b --method ties --density 0.2 --output merged
    """
    from weft.algebra import combine_with_costs
    from weft.formats import load
    from weft.model.new_folder import check_output

    paths = named_paths(adapters)
    chosen = _method(method, density, seed)
    given = None if weights is None else _weights(weights)
    check_output(output, overwrite, keep=paths.values())
    loaded = [load(path) for path in paths.values()]
    if factors_only:
        loaded = [replace(adapter, tensors={}) for adapter in loaded]
    costed = combine_with_costs(
        loaded,
        chosen,
        given,
        rank=rank,
        energy=energy,
        error=error,
        any_base=any_base,
        names=list(paths),
        progress=tracked("combining"),
    )
    in_dtype(costed.adapter, dtype).save(output)
    if as_json:
        print_json(document(costed, output))
        return
    inputs = costed.adapter.provenance["lineage"]["inputs"]
    rows = [("adapter", "weight", "modules", "ranks")]
    for entry, value in zip(inputs, loaded, strict=True):
        ranks = sorted({factors.rank for factors in value.factors.values()})
        rows.append((entry["name"], f"{entry['weight']:g}", str(len(value.factors)), ", ".join(map(str, ranks))))
    results().print(table(rows, right=rows[0][1:]))
    show(costed, output, modules)


def _method(name: str, density: float | None, seed: int | None) -> "Method":
    """The method of that name, with what settings are given.

    Raises:
        ConfigError: there is no such method, or it has no such setting.
    """
    from weft.algebra import methods

    given = {"density": density, "seed": seed}
    settings = {setting: value for setting, value in given.items() if value is not None}
    return choice_from(methods, {"name": name, **settings}, "method")


def _weights(text: str) -> list[float]:
    """The numbers of a list with commas.

    Raises:
        ConfigError: one is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"weights: expected numbers with commas between them, found {text!r}") from error
