"""A module that carries adapters: its own class, subclassed in place.

`weave(module, LoRALinear)` gives the module the class ``LoRALinear + type(module)`` and an empty bank;
`unweave` gives it its old class back. The object, its parameters, hooks and place in the model never
change, so names, ties, optimizers, sharding and `isinstance` go on working.
"""

import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from weft.errors import StateError


class Adapted(nn.Module):
    """The part that every adapted module has: a bank of adapters, and which of them are active.

    Attributes:
        adapters: adapter name -> that adapter's part on this module.
        active: adapter name -> the factor that its change is scaled by, for the active ones.
        merged: what undoes a merge into this module's parameters, or None; see `weft.model.merge`.
    """

    adapters: "Bank"
    active: Mapping[str, float]
    merged: object | None

    def __reduce__(self) -> tuple[Any, ...]:
        # A class made at run time cannot be found by name: copies and pickles make it again from its two parts.
        kind, base = type(self).__bases__
        return _remake, (kind, base), self.__dict__


class Bank(nn.ModuleDict):
    """The adapters of one module, by name.

    A model on the meta device gets memory from `to_empty`, and its values from a file. No file holds adapters' values,
    so those that have some keep them, and those made without memory get their first values then.

    Attributes:
        starts: name -> what gives an adapter's part, made without memory, its first values.
    """

    starts: dict[str, Callable[[nn.Module], None]]

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["starts"] = {}

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.starts.pop(key, None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Bank":
        """What `to`, `to_empty` and their like call.

        Raises:
            StateError: a part without values that nothing here can give it.
        """
        if not _makes_memory(fn):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        waiting = [name for name, part in self.items() if any(t.is_meta for t in (*part.parameters(), *part.buffers()))]
        lost = ", ".join(repr(name) for name in waiting if name not in self.starts)
        if lost:
            raise StateError(
                f"the adapter {lost} has tensors without values (on the meta device), which must come from the base's "
                "(biases, magnitudes, whole modules) or were there before; detach it, give the model its weights, and "
                "attach it again"
            )
        super()._apply(partial(_with_values, fn), recurse)  # type: ignore[no-untyped-call]
        for name in waiting:
            self.starts.pop(name)(self[name])
        return self


@torch.no_grad()
def _makes_memory(fn: Callable[[Tensor], Tensor]) -> bool:
    """Whether a tensor on the meta device is to get memory."""
    try:
        return not fn(torch.empty(0, device="meta")).is_meta
    except RuntimeError:  # so torch answers where it is to move such a tensor's values
        return True


@torch.no_grad()
def _with_values(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What `fn` makes of a tensor, and the tensor's values in it; for one on the meta device, memory for them."""
    if tensor.is_meta:
        return fn(torch.empty(0, dtype=tensor.dtype)).new_empty(tensor.shape)
    moved = fn(tensor)
    return moved if moved is tensor else moved.copy_(tensor)


A = TypeVar("A", bound=Adapted)


def weave(module: nn.Module, kind: type[A]) -> A:
    """Makes `module` an adapted module of the given kind, in place, with an empty bank; returns it."""
    if isinstance(module, kind):
        return module
    bound = _bound_forward(module)
    module.__class__ = _woven_class(kind, type(module))
    assert isinstance(module, kind)
    module._modules["adapters"] = Bank()
    # Plain values, which need none of what `nn.Module` does to set an attribute: there can be ten thousand modules.
    module.__dict__.update(active={}, merged=None)
    if bound is not None:
        module.__dict__[bound] = types.MethodType(type(module).forward, module)
    return module


def put(
    module: nn.Module,
    kind: type[Adapted],
    name: str,
    part: nn.Module,
    start: Callable[[nn.Module], None] | None = None,
) -> None:
    """Puts an adapter's part into the bank of a module, which is woven first where it is not yet.

    Args:
        module: the module.
        kind: what it must be woven into.
        name: the adapter's name, which is free, and no name that torch's modules use themselves.
        part: the part.
        start: gives the part, made without memory, its first values.
    """
    bank = bank_of(weave(module, kind))
    assert bank is not None
    bank._modules[name] = part
    if start is not None:
        bank.starts[name] = start


def bank_of(module: nn.Module) -> Bank | None:
    """The bank of adapters of an adapted module; None for any other."""
    bank = module._modules["adapters"] if isinstance(module, Adapted) else None
    assert bank is None or isinstance(bank, Bank)
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
