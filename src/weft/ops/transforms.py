"""Whether something transforms the operations instead of running them."""

import torch
from torch._C import _are_functorch_transforms_active as in_torch_func

__all__ = ["in_torch_func", "is_transformed"]


def is_transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp) is active, or torch.compile is tracing.

    torch.func has rules for torch's own operations alone, and a compiler fuses them by itself: both get the eager form.
    """
    return in_torch_func() or torch.compiler.is_compiling()
