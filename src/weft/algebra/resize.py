"""The same adapter at lower ranks."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from weft.adapter import Adapter
from weft.algebra.costs import Costed, Costs, ModuleCost
from weft.algebra.finite import require_finite
from weft.algebra.lineage import input_of, with_lineage
from weft.algebra.method import truncated
from weft.errors import ConfigError
from weft.linalg import Limit


def resize(
    adapter: Adapter, *, rank: int | None = None, energy: float | None = None, error: float | None = None
) -> Adapter:
    """The nearest adapter within a limit, module by module; `resize_with_costs` says what it cost.

    Args:
        adapter: any; its factors alone are read, and their truncated SVD is exact (Eckart and Young, 1936). What was
            trained beside them stays; trained magnitudes (DoRA) then scale the changed sum of base and update.
        rank: the largest rank of a module.
        energy: the smallest share of a module's sum of squared singular values; each module gets its own rank.
        error: the largest relative Frobenius error of a module; likewise.

    Raises:
        ConfigError: not exactly one limit, a limit out of range, an adapter without factors, NaN or infinity.
    """
    return resize_with_costs(adapter, rank=rank, energy=energy, error=error).adapter


def resize_with_costs(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    name: str | None = None,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> Costed:
    """`resize`, and the errors of each module.

    Args:
        name: how the lineage calls the adapter.
        progress: goes through the modules' paths, one after another as they are worked on; a progress bar, say.
    """
    limit = Limit(rank, energy, error)
    if not adapter.factors:
        raise ConfigError("this adapter has no factors; there is no rank to reduce")
    require_finite(adapter, name or "the adapter")
    present = max(value.rank for value in adapter.factors.values())
    if limit.rank is not None and limit.rank > present:
        raise ConfigError(f"rank: {limit.rank} is more than this adapter has ({present}); there is nothing to reduce")
    reduced: dict[int, ModuleCost] = {}  # what modules share stays shared
    costs: dict[str, ModuleCost] = {}
    for path in progress(list(adapter.factors)):
        value = adapter.factors[path]
        if id(value) not in reduced:
            reduced[id(value)] = ModuleCost(value.rank, *truncated(value, limit))
        costs[path] = reduced[id(value)]
    factors = {path: cost.kept for path, cost in costs.items()}
    largest = max(value.rank for value in factors.values())
    config = replace(adapter.config, rank=largest, alpha=float(largest), rank_pattern={}, alpha_pattern={})
    smaller = replace(adapter, config=config, factors=factors)
    smaller = with_lineage(smaller, "resize", [input_of(adapter, name=name)], {"limit": limit.to_dict()})
    return Costed(smaller, Costs(costs))
