"""A module that carries adapters: its own class, subclassed in place.

`weave(module, LoRALinear)` gives the module the class ``LoRALinear + type(module)`` and an empty bank;
`unweave` gives it its old class back. The object, its parameters, hooks and place in the model never
change, so names, ties, optimizers, sharding and `isinstance` go on working.
"""

import types
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from weft.errors import StateError


class Adapted(nn.Module):
    """The part that every adapted module has: a bank of adapters, and which of them are active.

    Attributes:
        adapters: adapter name -> that adapter's part on this module.
        active: adapter name -> the factor that its change is scaled by, for the active ones.
        merged: what undoes a merge into this module's parameters, or None; see `weft.model.merge`.
    """

    adapters: nn.ModuleDict
    active: Mapping[str, float]
    merged: object | None

    def __reduce__(self) -> tuple[Any, ...]:
        # A class made at run time cannot be found by name: copies and pickles make it again from its two parts.
        kind, base = type(self).__bases__
        return _remake, (kind, base), self.__dict__


A = TypeVar("A", bound=Adapted)


def weave(module: nn.Module, kind: type[A]) -> A:
    """Makes `module` an adapted module of the given kind, in place, with an empty bank; returns it."""
    if isinstance(module, kind):
        return module
    bound = _bound_forward(module)
    module.__class__ = _woven_class(kind, type(module))
    assert isinstance(module, kind)
    module._modules["adapters"] = nn.ModuleDict()
    # Plain values, which need none of what `nn.Module` does to set an attribute: there can be ten thousand modules.
    module.__dict__.update(active={}, merged=None)
    if bound is not None:
        module.__dict__[bound] = types.MethodType(type(module).forward, module)
    return module


def bank_of(module: nn.Module) -> nn.ModuleDict | None:
    """The bank of adapters of an adapted module; None for any other."""
    bank = module._modules["adapters"] if isinstance(module, Adapted) else None
    assert bank is None or isinstance(bank, nn.ModuleDict)
    return bank


def set_active(module: Adapted, chosen: Mapping[str, float]) -> None:
    """Makes active on one module those of the chosen adapters that it carries.

    Args:
        module: the adapted module.
        chosen: name -> factor. Modules that carry all of them share it; it must not be changed afterwards.
    """
    there = module._modules["adapters"]._modules  # type: ignore[union-attr]  # an adapted module has a bank
    if not all(name in there for name in chosen):
        chosen = {name: scale for name, scale in chosen.items() if name in there}
    module.__dict__["active"] = chosen


def check_class(module: Adapted, path: str) -> None:
    """Raises StateError if something else has subclassed the module in place since (a sharding engine, say)."""
    bases = type(module).__bases__
    if len(bases) != 2 or not issubclass(bases[0], Adapted):
        raise StateError(
            f"the class of {path!r} became {type(module).__name__} after the adapter was attached; "
            "undo what changed it (sharding, parametrization) before detaching"
        )


def unweave(module: Adapted) -> None:
    """Gives an adapted module, whose class is checked, its old class back, and takes the bank away."""
    del module.adapters, module.active, module.merged
    bound = _bound_forward(module)
    _, module.__class__ = type(module).__bases__
    if bound is not None:
        module.__dict__[bound] = types.MethodType(type(module).forward, module)


def foreign_forward(module: nn.Module) -> bool:
    """Whether something replaced this very module's forward in a way that weft cannot go through."""
    return "forward" in module.__dict__ and _bound_forward(module) is None


def _bound_forward(module: nn.Module) -> str | None:
    """The attribute under which the module itself holds the forward of its class as a bound method, if it does.

    accelerate's hooks replace `module.forward` on the object and keep the method that they call as `_old_forward`;
    taken off, they leave it as `forward`. Either way it is a method of the class that the module has now.
    """
    for name in ("_old_forward", "forward"):
        bound = module.__dict__.get(name)
        if isinstance(bound, types.MethodType) and bound.__func__ is type(module).forward:
            return name
    return None


_woven: dict[tuple[type[Adapted], type[nn.Module]], type[nn.Module]] = {}


def _woven_class(kind: type[Adapted], base: type[nn.Module]) -> type[nn.Module]:
    """The one class that is both; made once, so that two layers of a kind are of one type."""
    if (kind, base) not in _woven:
        _woven[kind, base] = type(f"{kind.__name__}[{base.__name__}]", (kind, base), {"__module__": kind.__module__})
    return _woven[kind, base]


def _remake(kind: type[Adapted], base: type[nn.Module]) -> nn.Module:
    woven = _woven_class(kind, base)
    return woven.__new__(woven)
