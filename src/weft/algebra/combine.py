"""One adapter from several."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weft.adapter import Adapter, checked_weights, joined, require_summable, summed_tensors, union_of_paths
from weft.algebra.costs import Costed, Costs, ModuleCost
from weft.algebra.finite import require_finite
from weft.algebra.lineage import input_of, with_lineage
from weft.algebra.method import Method, methods
from weft.config import choice_from
from weft.errors import ConfigError
from weft.linalg import Limit


def combine(
    adapters: Sequence[Adapter],
    method: str | Mapping[str, Any] | Method = "linear",
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    any_base: bool = False,
) -> Adapter:
    """The adapter that several make together, from their factors alone; `combine_with_costs` says what a limit cost.

    Args:
        adapters: of one base, with any ranks, scalings and targets, as long as they share a module.
        method: a name from `weft.algebra.methods`; or with its settings, as a value such as ``Ties(density=0.2)``, or
            as files have it, ``{"name": "ties", "density": 0.2}``.
        weights: one for each adapter; by default they are equal and sum to 1.
        rank, energy, error: at most one, a limit for each module: the largest rank, the smallest share of the sum of
            squared singular values, or the largest relative Frobenius error.
        any_base: combine also what names different bases.

    Raises:
        ConfigError: there is no such method, or weights, shapes, targets, values or the limit do not fit.
        BaseMismatchError: the adapters were made for different bases.
    """
    return combine_with_costs(
        adapters, method, weights, rank=rank, energy=energy, error=error, any_base=any_base
    ).adapter


def combine_with_costs(
    adapters: Sequence[Adapter],
    method: str | Mapping[str, Any] | Method = "linear",
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    any_base: bool = False,
    names: Sequence[str] | None = None,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> Costed:
    """`combine`, and the errors of each module.

    Args:
        names: how the lineage calls the adapters.
        progress: goes through the modules' paths, one after another as they are worked on; a progress bar, say.
    """
    chosen: Method = choice_from(methods, method, "method")
    limit = Limit.of(rank, energy, error)
    weights = checked_weights(adapters, [1 / len(adapters) for _ in adapters] if weights is None else weights)
    _require_common_ground(adapters)
    require_summable(adapters, any_base)
    _require_reachable(adapters, chosen, limit)
    for number, adapter in enumerate(adapters, 1):
        require_finite(adapter, f"adapter {number}")
    tensors = summed_tensors(adapters, weights)

    merged: dict[tuple[int, ...], ModuleCost] = {}  # what modules share stays shared
    costs: dict[str, ModuleCost] = {}
    for path in progress(union_of_paths(adapters)):
        terms = [adapter.factors.get(path) for adapter in adapters]
        key = tuple(map(id, terms))
        if key not in merged:
            kept, lost = chosen.merge(path, terms, weights, limit)
            before = sum(term.rank for term in terms if term is not None)
            merged[key] = ModuleCost(before, kept, lost)
        costs[path] = merged[key]
    result = joined(adapters, {path: cost.kept for path, cost in costs.items()}, tensors)
    inputs = [
        input_of(adapter, weight=weight, name=names[place] if names else None)
        for place, (adapter, weight) in enumerate(zip(adapters, weights, strict=True))
    ]
    settings = {"method": chosen.to_plain(), "limit": None if limit is None else limit.to_dict()}
    return Costed(with_lineage(result, "combine", inputs, settings), Costs(costs))


def _require_common_ground(adapters: Sequence[Adapter]) -> None:
    """Raises ConfigError if an adapter shares no module with the others: it is of another model, or named otherwise."""
    for number, adapter in enumerate(adapters, 1):
        others = {path for i, other in enumerate(adapters, 1) if i != number for path in other.factors}
        if len(adapters) > 1 and not adapter.factors.keys() & others:
            mine, theirs = next(iter(adapter.factors), "nothing"), next(iter(others), "nothing")
            raise ConfigError(
                f"adapter {number} changes no module that another changes (it changes {mine!r} and so on, they "
                f"{theirs!r}): are they of one model? If that is meant, add them as values: a + b"
            )


def _require_reachable(adapters: Sequence[Adapter], method: Method, limit: Limit | None) -> None:
    """Raises ConfigError if no module can have the rank that is asked for."""
    if limit is None or limit.rank is None:
        return
    largest = max(
        (
            min(sum(a.factors[path].rank for a in adapters if path in a.factors), *shape)
            if method.adds_ranks
            else min(shape)
            for path, shape in {path: f.shape for a in adapters for path, f in a.factors.items()}.items()
        ),
        default=limit.rank,
    )
    if limit.rank > largest:
        raise ConfigError(f"rank: {limit.rank} is more than any module can have ({largest}); leave it out, or lower it")
