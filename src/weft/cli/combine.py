"""``weft combine``: one adapter from several."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from weft.cli import lorahub
from weft.cli.adapters import named_paths
from weft.cli.costs import document, in_dtype, show
from weft.cli.dtype import Dtype
from weft.cli.output import print_json, results, table, tracked
from weft.config import choice_from
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.adapter import Adapter
    from weft.algebra import Costed, Method


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="The adapters: PATH or NAME=PATH; folders of runs and names in the library too.", show_default=False
        ),
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
    dtype: Annotated[Dtype | None, typer.Option(help="Write in this dtype. Default: the widest that went in.")] = None,
    factors_only: Annotated[
        bool, typer.Option("--factors-only", help="Leave out what was trained whole, such as heads and biases.")
    ] = False,
    base: lorahub.BaseModel = None,
    examples: lorahub.Examples = None,
    held_out: lorahub.HeldOut = None,
    budget: lorahub.Budget = None,
    bounds: lorahub.Bounds = None,
    penalty: lorahub.Penalty = None,
    batch_size: lorahub.BatchSize = None,
    messages_column: lorahub.MessagesColumn = None,
    prompt_column: lorahub.PromptColumn = None,
    completion_column: lorahub.CompletionColumn = None,
    text_column: lorahub.TextColumn = None,
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

    By a few examples of a new task: `lorahub`, the weighted sum whose weights have the lowest loss on `--examples`,
    found by a search without gradients. This one needs the base.

    Examples:

        weft combine runs/a runs/b --output both

        weft combine runs/a runs/b --weights 1,-1 --output difference

        weft combine runs/a runs/b runs/c --method svd --rank 16 --dtype bfloat16 --output small

        weft combine runs/a runs/b --method ties --density 0.2 --output merged

        weft combine runs/* --method lorahub --examples few.jsonl --held-out more.jsonl --output for-the-task
    """
    from weft.algebra import combine_with_costs
    from weft.formats import load
    from weft.model.new_folder import check_output

    paths = named_paths(adapters)
    search = lorahub.SearchOptions(
        base,
        examples,
        held_out,
        budget,
        bounds,
        penalty,
        batch_size,
        messages_column,
        prompt_column,
        completion_column,
        text_column,
    )
    if method == lorahub.METHOD:
        lorahub.check(search, {"weights": weights, "density": density, "seed": seed})
    else:
        lorahub.require_unused(search, method)
        chosen = _method(method, density, seed)
        given = None if weights is None else _weights(weights)
    check_output(output, overwrite, keep=paths.values())
    loaded = {name: load(path) for name, path in paths.items()}
    if factors_only:
        loaded = {name: replace(adapter, tensors={}) for name, adapter in loaded.items()}
    found = None
    if method == lorahub.METHOD:
        found = lorahub.compose(loaded, search, rank=rank, energy=energy, error=error, any_base=any_base)
        costed = found.costed
    else:
        costed = combine_with_costs(
            list(loaded.values()),
            chosen,
            given,
            rank=rank,
            energy=energy,
            error=error,
            any_base=any_base,
            names=list(loaded),
            progress=tracked("combining"),
        )
    in_dtype(costed.adapter, dtype, loaded.values()).save(output)
    if as_json:
        print_json(document(costed, output) | (lorahub.document(found) if found is not None else {}))
        return
    if found is not None:
        lorahub.show(found)
    else:
        results().print(_inputs(costed, loaded))
    show(costed, output, modules)


def _inputs(costed: "Costed", loaded: Mapping[str, "Adapter"]) -> Table:
    """What went in, with its weights."""
    rows = [("adapter", "weight", "modules", "ranks")]
    for entry, value in zip(costed.adapter.provenance["lineage"]["inputs"], loaded.values(), strict=True):
        ranks = sorted({factors.rank for factors in value.factors.values()})
        rows.append((entry["name"], f"{entry['weight']:g}", str(len(value.factors)), ", ".join(map(str, ranks))))
    return table(rows, right=rows[0][1:])


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
