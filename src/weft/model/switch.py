"""Which adapters change the output: switching copies nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from weft.errors import StateError
from weft.model.modules import adapted_modules
from weft.model.state import ModelState, require_adapter, require_unmerged, state_of
from weft.nn import Adapted, CompanionLayer, ReplacedModule
from weft.nn.bank import set_active

Selection = str | Sequence[str] | Mapping[str, float] | None
"""One adapter, several whose changes are summed, several with a factor each, or none: the base alone."""


def activate(model: nn.Module, names: Selection) -> None:
    """Makes the named adapters the active ones; None leaves the base alone.

    Args:
        model: a model with adapters attached.
        names: one name, several (their changes are summed), or {name: factor}.

    Raises:
        StateError: an unknown name, adapters that cannot be summed, or a merge that is not undone yet.
    """
    state = state_of(model)
    require_unmerged(state, "switch adapters")
    chosen = selection(state, names)
    make_active(state, adapted_modules(model), chosen)


def make_active(state: ModelState, modules: Sequence[tuple[str, Adapted]], chosen: dict[str, float]) -> None:
    """Makes the chosen adapters the active ones of a model whose adapted modules these are.

    Raises:
        StateError: adapters that cannot be summed.
    """
    check_sum(modules, chosen)
    for _, module in modules:
        set_active(module, chosen)
    state.active = dict(chosen)


@contextmanager
def active(model: nn.Module, names: Selection) -> Iterator[None]:
    """`activate` for the length of a ``with`` block; what was active before is active again after it."""
    before = dict(state_of(model).active)
    activate(model, names)
    try:
        yield
    finally:
        activate(model, before)


def selection(state: ModelState, names: Selection) -> dict[str, float]:
    """A selection as {name: factor}, every name checked."""
    if names is None:
        return {}
    if isinstance(names, str):
        names = [names]
    chosen = {name: float(names[name]) if isinstance(names, Mapping) else 1.0 for name in names}
    for name in chosen:
        require_adapter(state, name)
    return chosen


def check_sum(modules: Iterable[tuple[str, Adapted]], chosen: Mapping[str, float]) -> None:
    """Raises StateError if what cannot be summed or scaled is trained in several of the chosen adapters, or scaled."""
    for path, module in modules:
        if isinstance(module, CompanionLayer) and not module.sums:
            holders = [name for name in chosen if name in module.adapters]
            kind = path.rpartition(".")[2]
            if len(holders) > 1:
                raise StateError(
                    f"{' and '.join(map(repr, holders))} each have their own {kind} ({path!r}), and the two cannot be "
                    "summed; activate one of them"
                )
            if holders and chosen[holders[0]] != 1:
                raise StateError(f"{holders[0]!r} has a {kind} ({path!r}), which cannot be scaled; use 1.0")
        if isinstance(module, ReplacedModule):
            holders = [name for name in chosen if name in module.adapters]
            if len(holders) > 1:
                raise StateError(
                    f"{' and '.join(map(repr, holders))} each have their own {path!r}, and two whole modules "
                    "cannot be summed; activate one of them"
                )
            inside = [
                name
                for _, part in adapted_modules(module)
                for name in chosen
                if part is not module and name in part.adapters
            ]
            if holders and inside:
                raise StateError(
                    f"{holders[0]!r} has its own {path!r}, where what {inside[0]!r} changes inside it would be lost; "
                    "activate one of them"
                )
            if holders and chosen[holders[0]] != 1:
                raise StateError(f"{holders[0]!r} has its own {path!r}, and a whole module cannot be scaled; use 1.0")
