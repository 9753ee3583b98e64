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
    bound = _redirected_forward(module)
    module.__class__ = _woven_class(kind, type(module))
    assert isinstance(module, kind)
    module.adapters = nn.ModuleDict()
    module.active = {}
    module.merged = None
    if bound is not None:
        module.__dict__[bound] = types.MethodType(type(module).forward, module)
    return module


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
    bound = _redirected_forward(module)
    _, module.__class__ = type(module).__bases__
    if bound is not None:
        module.__dict__[bound] = types.MethodType(type(module).forward, module)


def foreign_forward(module: nn.Module) -> bool:
    """Whether something replaced this very module's forward in a way that weft cannot go through."""
    return "forward" in module.__dict__ and _redirected_forward(module) is None


def _redirected_forward(module: nn.Module) -> str | None:
    """The attribute under which accelerate's hooks keep the forward that they wrap, if they wrap this module's.

    A hook replaces `module.forward` on the object and calls ``module._old_forward``, a method of the old class.
    """
    old = module.__dict__.get("_old_forward")
    wraps_class_forward = isinstance(old, types.MethodType) and old.__func__ is type(module).forward
    return "_old_forward" if "_hf_hook" in module.__dict__ and wraps_class_forward else None


_woven: dict[tuple[type[Adapted], type[nn.Module]], type[nn.Module]] = {}


def _woven_class(kind: type[Adapted], base: type[nn.Module]) -> type[nn.Module]:
    """The one class that is both; made once, so that two layers of a kind are of one type."""
    if (kind, base) not in _woven:
        _woven[kind, base] = type(f"{kind.__name__}[{base.__name__}]", (kind, base), {"__module__": kind.__module__})
    return _woven[kind, base]


def _remake(kind: type[Adapted], base: type[nn.Module]) -> nn.Module:
    woven = _woven_class(kind, base)
    return woven.__new__(woven)
