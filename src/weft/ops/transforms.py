"""Whether something transforms the operations instead of running them."""

import torch

__all__ = ["is_transformed"]


def is_transformed() -> bool:
    """Whether torch.compile is tracing, or a transform of torch.func (grad, vmap, jvp) is active.

    A compiler fuses torch's own operations by itself, and torch.func has rules for them alone: both get the eager form.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
