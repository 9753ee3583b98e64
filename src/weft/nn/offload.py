"""Modules whose weights accelerate keeps on the host or a disk, and brings in for each forward pass.

Between two passes such a weight is on the meta device: it has a shape, but no values.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from weft.nn.bank import bank_of


def onboard(module: nn.Module | None) -> AbstractContextManager[None]:
    """The offloaded weights of a module, and of those inside it, in memory for the length of a ``with`` block.

    Those of adapters stay where they are. For None, nothing is done.
    """
    parts = [] if module is None else _parts(module)
    hooked = [(part, part.__dict__["_hf_hook"]) for part in parts if _is_offloaded(part)]
    return _brought_in(hooked) if hooked else nullcontext()


def _parts(module: nn.Module) -> list[nn.Module]:
    """A module and those inside it, without adapters."""
    found = [module]
    for part in found:  # which grows on the way
        if part._modules:
            bank = bank_of(part)
            found += [child for child in part._modules.values() if child is not None and child is not bank]
    return found


@contextmanager
def _brought_in(hooked: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    # The two steps that accelerate's hook itself takes around a forward pass.
    for part, hook in hooked:
        hook.pre_forward(part)
    try:
        yield
    finally:
        for part, hook in hooked:
            hook.post_forward(part, None)


def _is_offloaded(module: nn.Module) -> bool:
    return "_hf_hook" in module.__dict__ and any(p is not None and p.is_meta for p in module._parameters.values())
