"""How the commands that reduce an adapter show and write what came of it."""

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.cli.dtype import Dtype
from weft.cli.output import results, size, table

if TYPE_CHECKING:
    from weft.adapter import Adapter
    from weft.algebra import Costed


def in_dtype(adapter: "Adapter", dtype: Dtype | None, sources: Iterable["Adapter"]) -> "Adapter":
    """The adapter with its factors rounded to `dtype`, or else to the widest that the adapters it is made of have."""
    import torch

    found = {value.dtype for source in sources for value in source.factors.values()}
    wanted = reduce(torch.promote_types, found) if dtype is None else dtype.of_torch
    rounded = {id(value): value.to(dtype=wanted) for value in adapter.factors.values()}  # what is shared stays so
    return replace(adapter, factors={path: rounded[id(value)] for path, value in adapter.factors.items()})


def show(costed: "Costed", output: Path, each: bool) -> None:
    """Prints a row for each kind of module (or, with `each`, module), and below it the whole."""
    from weft.patterns import open_index

    groups: dict[str, list[str]] = {}
    for path in costed.costs.modules:
        groups.setdefault(path if each else open_index(path), []).append(path)
    rows = [("modules", "count", "rank before", "rank", "norm", "error", "largest error")]
    for name, paths in groups.items():
        costs = [costed.costs.modules[path] for path in paths]
        rows.append(
            (
                name,
                str(len(costs)),
                span([cost.rank_before for cost in costs]),
                span([cost.kept.rank for cost in costs]),
                f"{sum(cost.norm for cost in costs) / len(costs):.3g}",
                percent(sum(cost.relative_error for cost in costs) / len(costs)),
                percent(max(cost.relative_error for cost in costs)),
            )
        )
    console = results()
    console.print(table(rows, right=rows[0][1:]))
    adapter = costed.adapter
    console.print(
        f"wrote {output}: {len(adapter.factors)} modules, {adapter.num_parameters:,} parameters, "
        f"{size(adapter.nbytes)}; relative error of the whole change {percent(costed.costs.relative_error)}",
        markup=False,
        soft_wrap=True,
    )


def document(costed: "Costed", output: Path) -> dict[str, Any]:
    """The same as plain values."""
    costs = costed.costs
    return {
        "output": str(output),
        "parameters": costed.adapter.num_parameters,
        "bytes": costed.adapter.nbytes,
        "relative_error": costs.relative_error,
        "modules": {path: cost.to_dict() for path, cost in costs.modules.items()},
        "lineage": costed.adapter.provenance.get("lineage"),
    }


def span(values: list[int]) -> str:
    """``4``, or ``4 to 16``."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def percent(error: float) -> str:
    """A share for a person: ``3.14%``; exponents below a hundredth of a percent."""
    return "0" if error == 0 else f"{error:.2%}" if error >= 1e-4 else f"{error:.0e}"
