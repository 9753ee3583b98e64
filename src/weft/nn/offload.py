"""Modules whose weights accelerate keeps on the host or a disk, and brings in for each forward pass.

Between two passes such a weight is on the meta device: it has a shape, but no values.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def onboard(module: nn.Module) -> Iterator[None]:
    """The offloaded weights of a module, and of those inside it, in memory for the length of a ``with`` block."""
    # The two steps that accelerate's hook itself takes around a forward pass.
    hooked = [(part, part.__dict__["_hf_hook"]) for part in module.modules() if _is_offloaded(part)]
    for part, hook in hooked:
        hook.pre_forward(part)
    try:
        yield
    finally:
        for part, hook in hooked:
            hook.post_forward(part, None)


def _is_offloaded(module: nn.Module) -> bool:
    return "_hf_hook" in module.__dict__ and any(p is not None and p.is_meta for p in module._parameters.values())
