"""A whole module trained beside the factors (a classifier head, say): each adapter has its own copy.

The base's module stays as it was and answers when no adapter is active.
"""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from weft.nn.bank import Adapted


class ReplacedModule(Adapted):
    """A base module that, under an adapter, is answered for by that adapter's copy of it."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the active adapter's copy answers; the base's own answer if none is active."""
        for name in self.active:  # one at most: `weft.activate` sees to that
            return self.adapters[name](*inputs, **options)
        return super().forward(*inputs, **options)


class ReplacedSequential(ReplacedModule):
    """An `nn.Sequential`, which runs, counts and indexes its children: the bank is not one of them."""

    def __iter__(self) -> Iterator[nn.Module]:
        return (child for child in self._modules.values() if child is not None and child is not self.adapters)

    def __len__(self) -> int:
        return len(self._modules) - 1


def replacing(module: nn.Module) -> type[ReplacedModule]:
    """What a whole module must be woven into."""
    return ReplacedSequential if isinstance(module, nn.Sequential) else ReplacedModule


def trained_copy(module: nn.Module, trainable: bool) -> nn.Module:
    """A copy of a module's parameters and buffers to train, without the hooks that belong to its place."""
    hooks = (part.__dict__.get("_hf_hook") for part in module.modules())  # accelerate's; they hold offloaded weights
    twin = copy.deepcopy(module, {id(hook): None for hook in hooks if hook is not None})
    for part in twin.modules():
        if "_hf_hook" in part.__dict__:
            for name in ("_hf_hook", "_old_forward", "forward"):
                part.__dict__.pop(name, None)
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        part._backward_hooks.clear()
    return twin.requires_grad_(trainable)
